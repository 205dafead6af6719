import { STATES } from "./protocol";
import type { Rows } from "./rows";
import { duration } from "./words";

/** A column of the results table. `key` gives what sorts it: a number, NaN last, or a text. */
export interface Column {
  id: string;
  title: string;
  number: boolean;
  text(index: number, elapsed: number): string;
  key(index: number, elapsed: number): number | string;
}

const WIDE_PARAMETERS = 6;

/** All columns that there are, in order. */
export function columnsOf(rows: Rows): Column[] {
  const time = (id: string, title: string, seconds: (index: number, elapsed: number) => number): Column => {
    const text = (index: number, elapsed: number): string => {
      const value = seconds(index, elapsed);
      return Number.isNaN(value) ? "" : duration(value);
    };
    return { id, title, number: true, text, key: seconds };
  };
  const parameters = rows.parameters.map(({ name, numbers }, place): Column => {
    return {
      id: `parameter ${name}`,
      title: name,
      number: numbers !== null,
      text: (index) => rows.parameter(place, index),
      key: (index) => (numbers ? numbers[index]! : rows.parameter(place, index)),
    };
  });
  return [
    { id: "call", title: "call", number: true, text: (index) => `${index}`, key: (index) => index },
    {
      id: "state",
      title: "state",
      number: false,
      text: (index) => rows.state(index) + (rows.attempts[index]! > 1 ? `, try ${rows.attempts[index]}` : ""),
      key: (index) => rows.states[index]!,
    },
    ...parameters,
    {
      id: "result",
      title: "result",
      get number() {
        return rows.numeric;
      },
      text: (index) => rows.result(index),
      key: (index) => (rows.numeric ? (rows.states[index] === 4 ? rows.results[index]! : NaN) : rows.result(index)),
    },
    time("time", "time", (index, elapsed) => rows.runtime(index, elapsed)),
    time("started", "started after", (index) => rows.started[index]!),
    time("finished", "finished after", (index) => rows.finished[index]!),
    { id: "attempts", title: "tries", number: true, text: (index) => `${rows.attempts[index] || ""}`, key: (index) => rows.attempts[index]! },
    { id: "worker", title: "worker", number: false, text: (index) => rows.worker(index), key: (index) => rows.worker(index) },
  ];
}

/** What is shown until people choose. */
export function usual(columns: Column[], narrow: boolean): Set<string> {
  const parameters = columns.filter(({ id }) => id.startsWith("parameter ")).slice(0, WIDE_PARAMETERS);
  const fixed = narrow ? ["call", "result", "state", "time"] : ["call", "result", "state", "time", "worker"];
  return new Set([...fixed, ...parameters.map(({ id }) => id)]);
}

export interface Wanted {
  /** A state, or "" for all. */
  state: string;
  /** Text that a row has anywhere, in small letters. */
  text: string;
  /** The id of a column, and whether from the largest down. */
  sort: string;
  down: boolean;
}

/** The call numbers that are wanted, in order; null for all of them as they come. */
export function arrange(rows: Rows, columns: Column[], wanted: Wanted, elapsed: number): Uint32Array | null {
  const { state, text, sort, down } = wanted;
  if (!state && !text && (!sort || (sort === "call" && !down))) return null;
  const code = STATES.indexOf(state as (typeof STATES)[number]);
  const found = new Uint32Array(rows.count);
  let length = 0;
  for (let index = 0; index < rows.count; index++) {
    if (code >= 0 && rows.states[index] !== code) continue;
    if (text && !columns.some((column) => column.text(index, elapsed).toLowerCase().includes(text))) continue;
    found[length++] = index;
  }
  const order = found.slice(0, length);
  const column = columns.find(({ id }) => id === sort);
  if (!column) return order;
  return column.number || sort === "state" ? byNumber(order, column, down, elapsed) : byText(order, column, down, elapsed);
}

function byNumber(order: Uint32Array, column: Column, down: boolean, elapsed: number): Uint32Array {
  const keys = new Float64Array(order.length ? order.reduce((most, index) => Math.max(most, index), 0) + 1 : 0);
  const side = down ? -1 : 1;
  // what has none stands last, whichever way
  for (const index of order) {
    const key = column.key(index, elapsed) as number;
    keys[index] = Number.isNaN(key) ? Infinity : side * key;
  }
  return order.sort((a, b) => (keys[a] === keys[b] ? a - b : keys[a]! < keys[b]! ? -1 : 1));
}

function byText(order: Uint32Array, column: Column, down: boolean, elapsed: number): Uint32Array {
  const keys = new Map<number, string>();
  for (const index of order) keys.set(index, String(column.key(index, elapsed)));
  const side = down ? -1 : 1;
  return order.sort((a, b) => {
    const [left, right] = [keys.get(a)!, keys.get(b)!];
    if (left === right) return a - b;
    if (!left || !right) return left ? -1 : 1;
    return left < right ? -side : side;
  });
}
