// What kernel and view say to each other. qnb/notebook/snapshot.py and batch_view.py are the other side.

/** The states of a task, in the order of their numbers on the wire. */
export const STATES = ["pending", "queued", "running", "retrying", "done", "failed", "cancelled", "lost"] as const;
export type State = (typeof STATES)[number];

/** The order in which states stand in the bar and below it: ended, under way, still to come. */
export const SHOWN: readonly State[] = [
  "done", "failed", "lost", "cancelled", "running", "retrying", "queued", "pending",
];
const ENDED: ReadonlySet<State> = new Set<State>(["done", "failed", "lost", "cancelled"]);

/** [call number, state, arguments, result or error, run time in seconds, attempts, worker] */
export type WireRow = [number, number, string[], string, number | null, number, string];
/** [class of the exception, how many calls, one message] */
export type Failure = [string, number, string];

/** What changes all the time. `counts` by state number; seconds throughout. */
export interface Pulse {
  seq: number;
  counts: number[];
  rate: number;
  eta: number | null;
  elapsed: number;
}

/** Everything; what a view can start from. */
export interface Snapshot extends Pulse {
  kind: "snapshot";
  name: string;
  run: string;
  total: number;
  parameters: string[];
  over: boolean;
  rows: WireRow[];
  failures: Failure[];
}

/** What changed since `seq - 1`. Numbers are absolute, so that a view which missed one is right again with the next. */
export interface Delta extends Pulse {
  kind: "delta";
  rows: WireRow[];
  order: number[];
  failures?: Failure[];
}

/** A sign of life where nothing changed; `seq` is that of the last message before it. */
export interface Beat extends Omit<Pulse, "counts"> {
  kind: "beat";
}

/** The kernel has heard request `id`. */
export interface Ack {
  kind: "ack";
  id: string;
}

export type FromKernel = Snapshot | Delta | Beat | Ack;

export type Presence = "ready" | "shown" | "hidden" | "gone";
export type ToKernel =
  // `n` counts a view's own: the first may wait behind a cell while the next come through a subshell
  | { kind: Presence; view: string; n: number }
  | { kind: "resync" }
  | { kind: "cancel"; id: string };

/** How many calls have ended. */
export function ended(counts: readonly number[]): number {
  return counts.reduce((sum, count, number) => sum + (ENDED.has(STATES[number]!) ? count : 0), 0);
}

/** How many calls are in a state. */
export function inState(counts: readonly number[], state: State): number {
  return counts[STATES.indexOf(state)] ?? 0;
}
