import { DONE, FAILED, LOST, RETRYING, RUNNING, STATES, type State, type WireRows } from "./protocol";
import { number } from "./words";

/** A parameter's values: as numbers, or as text as far as it has come. */
export interface Parameter {
  name: string;
  numbers: Float64Array | null;
  texts: string[];
}

/** The calls of a batch in columns, by call number. Times in seconds since the batch began, NaN for none. */
export class Rows {
  readonly count: number;
  readonly states: Uint8Array;
  readonly attempts: Uint8Array;
  readonly workers: Uint16Array;
  readonly started: Float64Array;
  readonly finished: Float64Array;
  readonly results: Float64Array;
  readonly texts: string[];
  readonly parameters: Parameter[];
  workerNames: string[] = [""];
  /** Counts changes: whoever draws from the rows sees by it whether there is news. */
  version = 0;
  /** The call that ended last; -1 before. */
  newest = -1;
  #numbers = false;
  #others = false;

  constructor(count: number, parameters: [string, boolean][]) {
    this.count = count;
    this.states = new Uint8Array(count);
    this.attempts = new Uint8Array(count);
    this.workers = new Uint16Array(count);
    this.started = new Float64Array(count).fill(NaN);
    this.finished = new Float64Array(count).fill(NaN);
    this.results = new Float64Array(count).fill(NaN);
    this.texts = new Array<string>(count);
    this.parameters = parameters.map(([name, numbers]) => {
      return { name, numbers: numbers ? new Float64Array(count) : null, texts: numbers ? [] : new Array<string>(count) };
    });
  }

  /** Take in what came. Buffers are copied: they need not lie where an array of doubles can. */
  change(wire: WireRows, buffers: DataView[], _now: number): void {
    const bytes = buffers.map(({ buffer, byteOffset, byteLength }) => buffer.slice(byteOffset, byteOffset + byteLength));
    const index = wire.index && wire.count ? new Uint32Array(bytes.shift() as ArrayBuffer) : null;
    if (wire.count) this.#columns(bytes, index, wire);
    if (wire.parameters) {
      for (const parameter of this.parameters) {
        if (parameter.numbers) parameter.numbers.set(new Float64Array(bytes.shift() as ArrayBuffer));
      }
    }
    if (wire.workers) this.workerNames = wire.workers;
    this.text(wire.texts);
    this.version++;
  }

  /** Take in texts alone. */
  text(texts: WireRows["texts"]): void {
    for (const [place, indices, values] of texts) {
      const target = place < 0 ? this.texts : this.parameters[place]!.texts;
      indices.forEach((index, at) => (target[index] = values[at]!));
      if (place < 0 && !this.#others) {
        this.#others = indices.some((index) => this.states[index] === DONE && Number.isNaN(this.results[index]));
      }
    }
    this.version++;
  }

  #columns(bytes: ArrayBufferLike[], index: Uint32Array | null, wire: WireRows): void {
    const next = (): ArrayBuffer => bytes.shift() as ArrayBuffer;
    const states = new Uint8Array(next());
    put(this.states, states, index);
    put(this.attempts, new Uint8Array(next()), index);
    put(this.workers, new Uint16Array(next()), index);
    put(this.started, new Float64Array(next()), index);
    const finished = new Float64Array(next());
    put(this.finished, finished, index);
    if (wire.numbers) {
      const results = new Float64Array(next());
      this.#numbers ||= results.some((result) => !Number.isNaN(result));
      put(this.results, results, index);
    }
    let latest = -Infinity;
    for (let at = 0; at < states.length; at++) {
      const place = index ? index[at]! : at;
      if (states[at]! >= DONE) {
        if (states[at] === DONE) delete this.texts[place]; // what it said while it ran
        if (finished[at]! >= latest) [latest, this.newest] = [finished[at]!, place];
      }
    }
  }

  /** Whether there are results, and every one so far is a number. */
  get numeric(): boolean {
    return this.#numbers && !this.#others;
  }

  state(index: number): State {
    return STATES[this.states[index]!]!;
  }

  /** Whether it failed in whatever way. */
  bad(index: number): boolean {
    const state = this.states[index];
    return state === FAILED || state === LOST || state === RETRYING;
  }

  result(index: number): string {
    const value = this.results[index]!;
    return Number.isNaN(value) || this.states[index] !== DONE ? (this.texts[index] ?? "") : number(value);
  }

  parameter(place: number, index: number): string {
    const { numbers, texts } = this.parameters[place]!;
    return numbers ? number(numbers[index]!) : (texts[index] ?? "");
  }

  worker(index: number): string {
    return this.workerNames[this.workers[index]!] ?? "";
  }

  /** Seconds that a call has run, or runs; NaN before its start. `elapsed`: seconds since the batch began. */
  runtime(index: number, elapsed: number): number {
    const end = this.finished[index]!;
    if (!Number.isNaN(end)) return end - this.started[index]!;
    return this.states[index] === RUNNING ? Math.max(0, elapsed - this.started[index]!) : NaN;
  }

  /** Whether text of this row has yet to come. */
  lacks(index: number): boolean {
    if (this.parameters.some(({ numbers, texts }) => !numbers && texts[index] === undefined)) return true;
    return this.states[index]! >= DONE && Number.isNaN(this.results[index]!) && this.texts[index] === undefined;
  }
}

function put<T extends Uint8Array | Uint16Array | Float64Array>(to: T, from: T, index: Uint32Array | null): void {
  if (index === null) to.set(from);
  else for (let at = 0; at < index.length; at++) to[index[at]!] = from[at]!;
}
