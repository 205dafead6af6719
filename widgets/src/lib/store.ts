import { Listeners } from "./channel";
import type { Beat, Delta, Failure, Snapshot, WireRows } from "./protocol";
import { Rows } from "./rows";

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
  failures: Failure[];
  at: number;
}

/** So long a view may be told of changes before it has the calls, in milliseconds. Its first word, which asks for them,
 * may wait behind a cell that runs; those that follow do not. */
const WITHOUT = 1000;

/** The state of a batch in the browser: snapshots replace it, numbered deltas change it, a gap is noticed. */
export class BatchStore {
  picture: Picture | null = null;
  /** The calls; empty until the kernel has told of them. */
  rows = new Rows(0, []);
  #seq = -1;
  #without: number | null = null;
  #listeners = new Listeners();
  #now: () => number;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  get over(): boolean {
    return this.picture?.over ?? false;
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  subscribe(listener: () => void): () => void {
    return this.#listeners.add(listener);
  }

  /** Take a message in. False when one before it was missed: then a new snapshot is wanted. */
  apply(message: Snapshot | Delta | Beat, buffers: DataView[] = []): boolean {
    if (message.kind === "snapshot") {
      this.#start(message, buffers);
      return true;
    }
    if (this.picture === null) return false;
    const complete = message.seq <= this.#seq + (message.kind === "delta" ? 1 : 0);
    const { counts, rate, eta, elapsed } = message;
    if (message.kind === "delta") {
      if (message.seq <= this.#seq) return true;
      this.#seq = message.seq;
      if (message.failures) this.picture.failures = message.failures;
      if (message.over !== undefined) this.picture.over = message.over;
      if (message.rows) this.rows.change(message.rows, buffers, this.#now());
    }
    Object.assign(this.picture, { counts, rate, eta, elapsed, at: this.#now() });
    this.#listeners.tell();
    return complete && !this.#waitsTooLong();
  }

  #waitsTooLong(): boolean {
    if (this.rows.count || !this.picture?.total) return false;
    this.#without ??= this.#now();
    return this.#now() - this.#without > WITHOUT;
  }

  #start(snapshot: Snapshot, buffers: DataView[]): void {
    const { seq, kind: _, rows, ...rest } = snapshot;
    if (seq < this.#seq) return;
    this.#seq = seq;
    this.picture = { ...rest, at: this.#now() };
    if (rows) this.#fill(rest.total, rows, buffers);
    this.#listeners.tell();
  }

  #fill(total: number, rows: WireRows, buffers: DataView[]): void {
    this.rows = new Rows(total, rows.parameters ?? []);
    this.rows.change(rows, buffers, this.#now());
  }
}

/** For views whose state is small: it comes whole with each message. */
export class StateStore<T> {
  state: T | null = null;
  over = false;
  /** When it came, in `performance.now()` milliseconds. */
  at = 0;
  #seq = -1;
  #listeners = new Listeners();

  get listeners(): number {
    return this.#listeners.size;
  }

  subscribe(listener: () => void): () => void {
    return this.#listeners.add(listener);
  }

  apply(message: { kind: string; seq: number; state?: T }): boolean {
    const complete = message.seq <= this.#seq + (message.kind === "beat" ? 0 : 1) || message.kind === "snapshot";
    if (message.state !== undefined && message.seq >= this.#seq) {
      this.state = message.state;
      this.#seq = message.seq;
      this.at = performance.now();
      this.#listeners.tell();
    }
    // the state is whole: one that was missed is missed no more
    return complete || message.state !== undefined;
  }
}
