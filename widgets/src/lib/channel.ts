import type { FromKernel, Snapshot, ToKernel } from "./protocol";
import { Store } from "./store";

/** What of an anywidget model is used here. */
export interface Model {
  get(name: string): unknown;
  on(name: string, callback: (...args: any[]) => void): void;
  off(name: string, callback: (...args: any[]) => void): void;
  send(content: unknown): void;
}

/** How long a button waits for the kernel's word before it says that the kernel is busy, in milliseconds. */
export const PATIENCE = 1500;
const RESYNC_EVERY = 1000;

/** The link of one model to its kernel: feeds the store, asks again when something was missed. */
export class Channel {
  readonly store: Store;
  /** `performance.now()` of the last message; the start counts as one. */
  heardAt: number;
  #model: Model;
  #asked = -Infinity;
  #waiting = new Map<string, () => void>();
  #number = 0;
  #now: () => number;

  constructor(model: Model, now: () => number = () => performance.now()) {
    this.#model = model;
    this.#now = now;
    this.heardAt = now();
    this.store = new Store(now);
    const saved = model.get("snapshot") as Snapshot | undefined;
    if (saved?.kind) this.store.apply(saved);
    model.on("msg:custom", this.#hear);
    model.on("change:snapshot", this.#reload);
  }

  send(message: ToKernel): void {
    this.#model.send(message);
  }

  /** Ask the kernel to cancel what has not ended. True once it has heard, false when it is too busy to hear. */
  cancel(): Promise<boolean> {
    const id = `${++this.#number}`;
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), PATIENCE);
      this.#waiting.set(id, () => {
        clearTimeout(timer);
        resolve(true);
      });
      this.send({ kind: "cancel", id });
    });
  }

  close(): void {
    this.#model.off("msg:custom", this.#hear);
    this.#model.off("change:snapshot", this.#reload);
    this.#waiting.clear();
  }

  #hear = (message: FromKernel): void => {
    this.heardAt = this.#now();
    if (message.kind === "ack") {
      this.#waiting.get(message.id)?.();
      this.#waiting.delete(message.id);
    } else if (!this.store.apply(message) && this.#now() - this.#asked >= RESYNC_EVERY) {
      this.#asked = this.#now();
      this.send({ kind: "resync" });
    }
  };

  #reload = (): void => {
    this.#hear(this.#model.get("snapshot") as Snapshot);
  };
}
