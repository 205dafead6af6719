import type { Model } from "../src/lib/channel";
import type { Delta, Snapshot, WireRows } from "../src/lib/protocol";

/** A model without a kernel: says what was sent, and plays the kernel's part. */
export class FakeModel implements Model {
  sent: Record<string, unknown>[] = [];
  state: Record<string, unknown>;
  #listeners = new Map<string, Set<(...args: any[]) => void>>();

  constructor(snapshot: object = {}, key = "") {
    this.state = { snapshot, key };
  }

  get listeners(): number {
    return [...this.#listeners.values()].reduce((sum, set) => sum + set.size, 0);
  }

  get(name: string): unknown {
    return this.state[name];
  }

  on(name: string, callback: (...args: any[]) => void): void {
    this.#listeners.set(name, (this.#listeners.get(name) ?? new Set()).add(callback));
  }

  off(name: string, callback: (...args: any[]) => void): void {
    this.#listeners.get(name)?.delete(callback);
  }

  send(content: unknown): void {
    this.sent.push(content as Record<string, unknown>);
  }

  said(kind: string): Record<string, unknown>[] {
    return this.sent.filter((message) => message.kind === kind);
  }

  /** What was asked for last: its id. */
  asked(what: string): Record<string, any> {
    return this.sent.filter((message) => message.kind === "ask" && message.what === what).at(-1) as Record<string, any>;
  }

  /** A message of the kernel arrives. */
  tell(message: object, buffers: DataView[] = []): void {
    this.fire("msg:custom", message, buffers);
  }

  /** Whoever listens for this event hears of it. */
  fire(name: string, ...values: unknown[]): void {
    for (const listener of this.#listeners.get(name) ?? []) listener(...values);
  }

  answer(what: string, value: unknown, ok = true): void {
    const { id } = this.asked(what);
    this.tell({ kind: "ack", id });
    this.tell({ kind: "answer", id, ok, value });
  }
}

/** Columns as they travel; each at an odd place of its buffer, as they may lie. */
export function pack(...columns: ArrayBufferView[]): DataView[] {
  return columns.map(({ buffer, byteOffset, byteLength }) => {
    const bytes = new Uint8Array(byteLength + 1);
    bytes.set(new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength), 1);
    return new DataView(bytes.buffer, 1);
  });
}

/** Ten calls of simulate(seed, side): two done, one failed, one running, the rest queued. */
export const STATES = [4, 4, 5, 2, 1, 1, 1, 1, 1, 1];

export function rows(): [WireRows, DataView[]] {
  const ended = STATES.map((state) => state >= 4);
  const wire: WireRows = {
    count: 10, numbers: true, index: false, workers: ["", "here-0"], parameters: [["seed", true], ["side", false]],
    texts: [[1, STATES.map((_, index) => index), STATES.map((_, index) => (index % 2 ? "'right'" : "'left'"))], [-1, [2], ["ValueError: no"]]],
  };
  const buffers = pack(
    new Uint8Array(STATES), new Uint8Array(10).fill(1), new Uint16Array(STATES.map((state) => (state > 1 ? 1 : 0))),
    new Float64Array(STATES.map((state, index) => (state > 1 ? index : NaN))),
    new Float64Array(ended.map((end, index) => (end ? index + 0.25 : NaN))),
    new Float64Array([1.5, 0.5, NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN]),
    new Float64Array(STATES.map((_, index) => index)),
  );
  return [wire, buffers];
}

/** Call 3 ends. */
export function ended3(): [WireRows, DataView[]] {
  const wire: WireRows = { count: 1, numbers: true, index: true, texts: [] };
  return [wire, pack(new Uint32Array([3]), new Uint8Array([4]), new Uint8Array([2]), new Uint16Array([1]), new Float64Array([3]), new Float64Array([3.5]), new Float64Array([7]))];
}

export function snapshot(changes: Partial<Snapshot> = {}): Snapshot {
  return {
    kind: "snapshot",
    seq: 0,
    name: "simulate",
    run: "3f9c2a7e-0",
    total: 10,
    parameters: ["seed", "side"],
    counts: [0, 6, 1, 0, 2, 1, 0, 0],
    rate: 4.2,
    eta: 5.4,
    elapsed: 3,
    over: false,
    failures: [["ValueError", 1, "no"]],
    ...changes,
  };
}

export function delta(seq: number, changes: Partial<Delta> = {}): Delta {
  return { kind: "delta", seq, counts: [0, 5, 1, 0, 3, 1, 0, 0], rate: 5, eta: 4, elapsed: 3.5, ...changes };
}
