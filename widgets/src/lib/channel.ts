import type { Ack, Answer, ToKernel } from "./protocol";

/** What of an anywidget model is used here. */
export interface Model {
  get(name: string): unknown;
  on(name: string, callback: (...args: any[]) => void): void;
  off(name: string, callback: (...args: any[]) => void): void;
  send(content: unknown): void;
}

/** What a view draws from. `apply` is false when a message before this one was missed. */
export interface Store {
  apply(message: any, buffers: DataView[]): boolean;
  subscribe(listener: () => void): () => void;
  /** Whether nothing will change any more, so that silence means nothing. */
  readonly over: boolean;
}

/** How long a button waits for the kernel's word before it says that the kernel is busy, in milliseconds. */
export const PATIENCE = 1500;
const RESYNC_EVERY = 1000;
export const RESTARTED = "The kernel was restarted. This is how things were; run the cell again to go on.";

interface Request {
  heard: () => void;
  done: (answer: Answer) => void;
}

/** The link of one model to its kernel: feeds the store, asks again when something was missed. */
export class Channel<S extends Store> {
  readonly store: S;
  /** Marks the outputs in which its views stand. */
  readonly key: string;
  /** What people chose in a view; the next view of the same model starts from it. */
  readonly choices = new Map<string, unknown>();
  /** `performance.now()` of the last message; the start counts as one. */
  heardAt: number;
  /** Whether the kernel that made the model has been restarted: it will never answer. */
  restarted = false;
  #model: Model;
  #asked = -Infinity;
  #requests = new Map<string, Request>();
  #number = 0;
  #now: () => number;

  constructor(model: Model, store: S, now: () => number = () => performance.now()) {
    this.#model = model;
    this.#now = now;
    this.heardAt = now();
    this.store = store;
    this.key = String(model.get("key") ?? "");
    const saved = model.get("snapshot") as { kind?: string } | undefined;
    if (saved?.kind) store.apply(saved, []);
    model.on("msg:custom", this.#hear);
    model.on("comm_live_update", this.#lose);
  }

  send(message: ToKernel): void {
    try {
      this.#model.send(message);
    } catch {
      // The kernel has closed the model, or is gone: there is nobody to be told any more.
    }
  }

  /** Ask the kernel for something. `busy` is called when it has not heard after 1.5 s; the answer may still come. */
  ask(what: string, argument: Record<string, unknown> = {}, busy: () => void = () => {}): Promise<Answer> {
    const id = `${++this.#number}`;
    if (this.restarted) return Promise.resolve({ kind: "answer", id, ok: false, value: RESTARTED });
    return new Promise((done) => {
      const timer = setTimeout(busy, PATIENCE);
      const heard = (): void => clearTimeout(timer);
      this.#requests.set(id, { heard, done });
      this.send({ kind: "ask", id, what, with: argument });
    });
  }

  close(): void {
    this.#model.off("msg:custom", this.#hear);
    this.#model.off("comm_live_update", this.#lose);
    for (const { heard } of this.#requests.values()) heard();
    this.#requests.clear();
  }

  /** Jupyter's widget manager says so of each model when a kernel restarts, and never takes it back. */
  #lose = (): void => {
    this.restarted = true;
    for (const [id, { heard, done }] of this.#requests) {
      heard();
      done({ kind: "answer", id, ok: false, value: RESTARTED });
    }
    this.#requests.clear();
  };

  #hear = (message: Ack | Answer | { kind: "other" }, buffers: DataView[] = []): void => {
    this.heardAt = this.#now();
    if (message.kind === "ack") {
      this.#requests.get(message.id)?.heard();
    } else if (message.kind === "answer") {
      const request = this.#requests.get(message.id);
      this.#requests.delete(message.id);
      request?.heard();
      request?.done(message);
    } else if (!this.store.apply(message, buffers) && this.#now() - this.#asked >= RESYNC_EVERY) {
      this.#asked = this.#now();
      this.send({ kind: "resync" });
    }
  };
}

/** Who wants to hear of changes. */
export class Listeners {
  #all = new Set<() => void>();

  get size(): number {
    return this.#all.size;
  }

  add(listener: () => void): () => void {
    this.#all.add(listener);
    return () => this.#all.delete(listener);
  }

  tell(): void {
    for (const listener of this.#all) listener();
  }
}
