// The Queues view: what waits in each queue, who serves it, and buttons that pause and resume it.
import "./lib/qnb.css";
import type { Channel } from "./lib/channel";
import { make, setAttribute, setText } from "./lib/dom";
import { LiveView, entry } from "./lib/live";
import { SmallTable, Spark, button } from "./lib/small";
import { StateStore } from "./lib/store";
import { count, plural } from "./lib/words";

interface Queue {
  queue: string;
  depth: number | null;
  history: number[];
  workers: number;
  lanes: number;
  paused: number;
  own: boolean;
}

export interface QueuesState {
  queues: Queue[];
  trouble?: string;
}

export function served({ workers, lanes, paused }: Queue): string {
  if (!workers) return "nobody";
  const words = `${plural(workers, "worker")}, ${plural(lanes, "process", "processes")}`;
  return paused ? `${words} · paused on ${paused === workers ? "all" : count(paused)}` : words;
}

class QueuesView extends LiveView<StateStore<QueuesState>> {
  #words = make("span", "qnb-dim");
  #sparks = new WeakMap<HTMLElement, Spark>();
  #table: SmallTable<Queue>;

  constructor(channel: Channel<StateStore<QueuesState>>) {
    super(channel, "queues", "Queues");
    this.#table = new SmallTable<Queue>("Queues", [
      { title: "queue", text: ({ queue, own }) => queue + (own ? "  (this session's)" : "") },
      { title: "waiting", number: true, text: ({ depth }) => (depth === null ? "not told" : count(depth)) },
      { title: "the last minute", make: () => this.#spark(), draw: (box, { history }) => this.#sparks.get(box)?.draw(history, `at most ${count(Math.max(0, ...history))} waited`) },
      { title: "served by", text: served },
      { title: "", make: (row) => this.#button(row), draw: (box, row) => drawButton(box as HTMLButtonElement, row) },
    ], ({ queue }) => queue);
    this.element.append(make("div", "qnb-head", {}, make("strong", "qnb-name", {}, "queues"), this.#words), this.#table.element);
  }

  protected draw(): void {
    const { state } = this.channel.store;
    if (!state) return;
    const waiting = state.queues.reduce((sum, { depth }) => sum + (depth ?? 0), 0);
    setText(this.#words, state.trouble ?? `${count(waiting)} messages waiting in ${plural(state.queues.length, "queue")}`);
    this.#table.draw(state.queues);
  }

  #spark(): HTMLElement {
    const spark = new Spark();
    this.#sparks.set(spark.element, spark);
    return spark.element;
  }

  #button(row: () => Queue): HTMLElement {
    return button("pause", "", () => void this.#ask(row()));
  }

  async #ask({ queue, paused }: Queue): Promise<void> {
    const said = await this.request(paused ? "resume" : "pause", { queue });
    if (said) this.say(String(said));
  }
}

function drawButton(box: HTMLButtonElement, { queue, paused, workers }: Queue): void {
  const word = paused ? "resume" : "pause";
  setText(box, word);
  setAttribute(box, "aria-label", `${word} ${queue} on all workers`);
  setAttribute(box, "title", `${word} on all workers`);
  box.disabled = workers === 0;
}

export default entry(() => new StateStore<QueuesState>(), (channel) => new QueuesView(channel));
