// What kernel and view say to each other. qnb/notebook/live.py, snapshot.py and rows.py are the other side.

/** The states of a task, in the order of their numbers on the wire. */
export const STATES = ["pending", "queued", "running", "retrying", "done", "failed", "cancelled", "lost"] as const;
export type State = (typeof STATES)[number];
export const [PENDING, QUEUED, RUNNING, RETRYING, DONE, FAILED, CANCELLED, LOST] = [0, 1, 2, 3, 4, 5, 6, 7] as const;

/** The order in which states stand in the bar and below it: ended, under way, still to come. */
export const SHOWN: readonly State[] = [
  "done", "failed", "lost", "cancelled", "running", "retrying", "queued", "pending",
];
const ENDED: ReadonlySet<State> = new Set<State>(["done", "failed", "lost", "cancelled"]);

/** [class of the exception, how many calls, one message] */
export type Failure = [string, number, string];
/** [place of a parameter, or -1 for the result; call numbers; their texts] */
export type Texts = [number, number[], string[]];

/** Rows, whose columns come as buffers: call numbers (u4, unless all), state (u1), attempts (u1), worker (u2), start and
 * end (f8, seconds since the batch began), the results where they are numbers (f8), and parameters that are (f8 each). */
export interface WireRows {
  count: number;
  numbers: boolean;
  index: boolean;
  texts: Texts[];
  workers?: string[];
  /** [name, whether its values are numbers]; with the first message alone. */
  parameters?: [string, boolean][];
}

/** What changes all the time. `counts` by state number; seconds throughout. */
export interface Pulse {
  seq: number;
  counts: number[];
  rate: number;
  eta: number | null;
  elapsed: number;
}

/** Everything; what a view can start from. Saved, it has no rows. */
export interface Snapshot extends Pulse {
  kind: "snapshot";
  name: string;
  run: string;
  total: number;
  parameters: string[];
  over: boolean;
  failures: Failure[];
  rows?: WireRows;
}

/** What changed since `seq - 1`. Numbers are absolute, so that a view which missed one is right again with the next. */
export interface Delta extends Pulse {
  kind: "delta";
  rows?: WireRows;
  failures?: Failure[];
  over?: boolean;
}

/** A sign of life where nothing changed; `seq` is that of the last message before it. */
export interface Beat extends Pulse {
  kind: "beat";
}

/** The kernel has heard request `id`. */
export interface Ack {
  kind: "ack";
  id: string;
}

/** What became of request `id`; the value of one that failed is a sentence. */
export interface Answer {
  kind: "answer";
  id: string;
  ok: boolean;
  value: unknown;
}

export type Presence = "ready" | "shown" | "hidden" | "gone" | "away";
export type ToKernel =
  // `n` counts a view's own: the first may wait behind a cell while the next come through a subshell
  | { kind: Presence; view: string; n: number }
  // a view stands in an output, which may become HTML from now on
  | { kind: "placed" }
  | { kind: "resync" }
  | { kind: "ask"; id: string; what: string; with: Record<string, unknown> };

/** Everything of one call. Times are Unix seconds: queued, started, finished. */
export interface Detail {
  index: number;
  id: string;
  state: State;
  arguments: [string, string][];
  result: string | null;
  error: string | null;
  traceback: string;
  output: string;
  worker: string;
  attempts: number;
  times: [number | null, number | null, number | null];
}

/** How many calls have ended. */
export function ended(counts: readonly number[]): number {
  return counts.reduce((sum, count, number) => sum + (ENDED.has(STATES[number]!) ? count : 0), 0);
}

/** How many calls are in a state. */
export function inState(counts: readonly number[], state: State): number {
  return counts[STATES.indexOf(state)] ?? 0;
}
