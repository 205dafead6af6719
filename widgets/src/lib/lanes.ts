import type { Rows } from "./rows";

/** Calls that one process of a worker ran one after the other, by when they began. */
export interface Lane {
  worker: number;
  calls: number[];
}

const MOST = 32;

/** Put calls side by side by worker: each on the first lane that was free when it began. */
export function lanesOf(rows: Rows): Lane[] {
  const { started, finished, workers } = rows;
  const begun: number[] = [];
  for (let index = 0; index < rows.count; index++) if (!Number.isNaN(started[index]!)) begun.push(index);
  begun.sort((a, b) => started[a]! - started[b]! || a - b);
  const byWorker = new Map<number, { calls: number[]; free: number }[]>();
  for (const index of begun) {
    const worker = workers[index]!;
    const lanes = byWorker.get(worker) ?? [];
    if (!lanes.length) byWorker.set(worker, lanes);
    const start = started[index]!;
    // clocks tell microseconds, and a call may begin where another ended
    let lane = lanes.find(({ free }) => free <= start + 1e-6);
    if (!lane && lanes.length < MOST) lanes.push((lane = { calls: [], free: 0 }));
    lane ??= lanes.reduce((first, other) => (other.free < first.free ? other : first));
    lane.calls.push(index);
    const end = finished[index]!;
    lane.free = Number.isNaN(end) ? Infinity : Math.max(lane.free, end);
  }
  const names = [...byWorker].sort(([a], [b]) => (rows.workerNames[a]! < rows.workerNames[b]! ? -1 : 1));
  return names.flatMap(([worker, lanes]) => lanes.map(({ calls }) => ({ worker, calls })));
}

/** The place of the last call in a lane that began before a time; -1 for none. */
export function lastBefore(calls: number[], started: Float64Array, time: number): number {
  let low = 0;
  let high = calls.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (started[calls[middle]!]! <= time) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Round times for an axis: about `number` steps within `seconds`. */
export function step(seconds: number, number: number): number {
  const rough = Math.max(seconds / number, 1e-4);
  for (const unit of [3600, 60]) {
    const choices = unit === 3600 ? [24, 12, 6, 3, 1] : [30, 15, 10, 5, 2, 1];
    const fit = choices.reverse().find((choice) => choice * unit >= rough);
    if (rough > unit / 2 && fit) return fit * unit;
  }
  const power = 10 ** Math.floor(Math.log10(rough));
  return (([1, 2, 5].find((choice) => choice * power >= rough)) ?? 10) * power;
}
