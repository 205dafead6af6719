import type { Model } from "../src/lib/channel";
import type { Delta, FromKernel, Snapshot, WireRow } from "../src/lib/protocol";

/** A model without a kernel: says what was sent, and plays the kernel's part. */
export class FakeModel implements Model {
  sent: Record<string, unknown>[] = [];
  state: Record<string, unknown>;
  #listeners = new Map<string, Set<(...args: any[]) => void>>();

  constructor(snapshot?: Snapshot) {
    this.state = { snapshot: snapshot ?? {} };
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

  /** A message of the kernel arrives. */
  tell(message: FromKernel): void {
    for (const listener of this.#listeners.get("msg:custom") ?? []) listener(message, []);
  }

  set(snapshot: Snapshot): void {
    this.state.snapshot = snapshot;
    for (const listener of this.#listeners.get("change:snapshot") ?? []) listener();
  }
}

export function row(index: number, state = 4, result = "1.5"): WireRow {
  return [index, state, [`${index}`, "'left'"], result, 0.25, 1, "here-0"];
}

/** Ten calls: two done, one failed, one running, the rest queued. */
export function snapshot(changes: Partial<Snapshot> = {}): Snapshot {
  return {
    kind: "snapshot",
    seq: 0,
    name: "simulate",
    run: "3f9c2a7e",
    total: 10,
    parameters: ["seed", "side"],
    counts: [0, 6, 1, 0, 2, 1, 0, 0],
    rate: 4.2,
    eta: 5.4,
    elapsed: 3,
    over: false,
    rows: [row(0), row(1), row(2, 5, "ValueError: no"), row(3, 2, "")],
    failures: [["ValueError", 1, "no"]],
    ...changes,
  };
}

export function delta(seq: number, changes: Partial<Delta> = {}): Delta {
  return {
    kind: "delta",
    seq,
    counts: [0, 5, 1, 0, 3, 1, 0, 0],
    rate: 5,
    eta: 4,
    elapsed: 3.5,
    rows: [row(3)],
    order: [0, 1, 2, 3],
    ...changes,
  };
}
