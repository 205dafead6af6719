import { STATES, type Delta, type Failure, type FromKernel, type Snapshot, type State } from "./protocol";

/** One call, as the table shows it. */
export interface Row {
  index: number;
  state: State;
  parameters: string[];
  result: string;
  /** Seconds, as of the message that brought it; null before the start. */
  runtime: number | null;
  attempts: number;
  worker: string;
  /** When the row arrived, in `performance.now()` milliseconds. */
  at: number;
}

/** What a view draws. `at` is when `rate`, `eta` and `elapsed` were true, in milliseconds of `performance.now()`. */
export interface Picture {
  name: string;
  run: string;
  total: number;
  parameters: string[];
  counts: number[];
  rate: number;
  eta: number | null;
  elapsed: number;
  over: boolean;
  rows: Row[];
  failures: Failure[];
  at: number;
}

/** The state of a batch in the browser: snapshots replace it, numbered deltas change it, a gap is noticed. */
export class Store {
  #picture: Picture | null = null;
  #seq = -1;
  #rows = new Map<number, Row>();
  #listeners = new Set<() => void>();
  #now: () => number;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  get picture(): Picture | null {
    return this.#picture;
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Take a message in. False when one before it was missed: then a new snapshot is wanted. */
  apply(message: FromKernel): boolean {
    if (message.kind === "ack") return true;
    if (message.kind === "snapshot") {
      this.#start(message);
    } else if (this.#picture === null) {
      return false;
    } else if (message.kind === "delta") {
      if (message.seq <= this.#seq) return true;
      return this.#change(message, this.#picture);
    } else {
      const { rate, eta, elapsed, seq } = message;
      Object.assign(this.#picture, { rate, eta, elapsed, at: this.#now() });
      this.#tell();
      return seq <= this.#seq;
    }
    return true;
  }

  #start(snapshot: Snapshot): void {
    const { seq, kind: _, rows, ...rest } = snapshot;
    if (seq < this.#seq) return;
    this.#seq = seq;
    this.#rows.clear();
    this.#keep(rows);
    this.#picture = { ...rest, rows: [...this.#rows.values()], at: this.#now() };
    this.#tell();
  }

  #change(delta: Delta, picture: Picture): boolean {
    const complete = delta.seq === this.#seq + 1;
    this.#seq = delta.seq;
    this.#keep(delta.rows);
    const { counts, rate, eta, elapsed, failures, order } = delta;
    const rows = order.map((index) => this.#rows.get(index)).filter((row) => row !== undefined);
    this.#rows = new Map(rows.map((row) => [row.index, row]));
    Object.assign(picture, { counts, rate, eta, elapsed, rows, at: this.#now() });
    if (failures) picture.failures = failures;
    this.#tell();
    return complete && rows.length === order.length;
  }

  #keep(rows: Snapshot["rows"]): void {
    const at = this.#now();
    for (const [index, state, parameters, result, runtime, attempts, worker] of rows) {
      this.#rows.set(index, { index, state: STATES[state]!, parameters, result, runtime, attempts, worker, at });
    }
  }

  #tell(): void {
    for (const listener of this.#listeners) listener();
  }
}
