// The Events view: the live stream, with a filter and a pause.
import "./lib/qnb.css";
import { Listeners, type Channel } from "./lib/channel";
import { make, setAttribute, setText } from "./lib/dom";
import { LiveView, entry } from "./lib/live";
import { SmallTable, button } from "./lib/small";
import { count } from "./lib/words";

/** [Unix time, kind, worker, what it is about] */
type WireEvent = [number, string, string, string];

interface Item {
  number: number;
  event: WireEvent;
}

const KEPT = 2000;
const SHOWN = 100;
/** Workers tell at intervals, so that one's events come a little after another's later ones. In seconds; what is told
 *  to be older than that has another clock, and stays where it came. */
const LATE = 2;

export class EventStore {
  over = false;
  total = 0;
  items: Item[] = [];
  #seq = -1;
  #listeners = new Listeners();

  get listeners(): number {
    return this.#listeners.size;
  }

  subscribe(listener: () => void): () => void {
    return this.#listeners.add(listener);
  }

  apply(message: { kind: string; seq: number; total?: number; events?: WireEvent[] }): boolean {
    if (message.kind === "beat") return message.seq <= this.#seq;
    const { events = [], total = 0 } = message;
    const complete = message.kind === "snapshot" || message.seq === this.#seq + 1;
    const items = message.kind === "snapshot" ? [] : [...this.items]; // a view that is paused holds the old ones
    this.#seq = message.seq;
    this.total = total;
    const first = total - events.length;
    for (const [place, event] of events.entries()) insert(items, { number: first + place, event });
    this.items = items.slice(-KEPT);
    this.#listeners.tell();
    return complete;
  }
}

class EventsView extends LiveView<EventStore> {
  #title = make("strong", "qnb-name", {}, "events");
  #words = make("span", "qnb-dim");
  #filter = make("input", "qnb-input", { type: "search", placeholder: "Filter", "aria-label": "Filter events by text" });
  #kinds = make("select", "qnb-input", { "aria-label": "Events of this kind" });
  #pause = button("Pause", "Pause the stream", () => this.#toggle());
  #table = new SmallTable<Item>("Events", [
    { title: "at", text: ({ event: [at] }) => clock(at) },
    { title: "what", make: () => make("span", "", {}, make("i"), make("span")), draw: (box, { event: [, kind] }) => draw(box, kind) },
    { title: "worker", text: ({ event: [, , worker] }) => worker },
    { title: "about", text: ({ event: [, , , about] }) => about },
  ], ({ number }) => `${number}`);
  #stopped: { items: Item[]; total: number } | null = null;

  constructor(channel: Channel<EventStore>) {
    super(channel, "events", "Events");
    this.#filter.value = (channel.choices.get("text") as string | undefined) ?? "";
    this.#filter.addEventListener("input", () => {
      channel.choices.set("text", this.#filter.value);
      this.soon();
    });
    this.#filter.addEventListener("keydown", (event) => event.stopPropagation());
    this.#kinds.addEventListener("change", () => this.soon());
    const right = make("span", "qnb-right", {}, this.#filter, this.#kinds, this.#pause);
    this.#table.element.classList.add("qnb-high");
    this.element.append(make("div", "qnb-head", {}, this.#title, this.#words, right), this.#table.element);
  }

  protected draw(): void {
    const { store } = this.channel;
    const { items, total } = this.#stopped ?? store;
    const text = this.#filter.value.trim().toLowerCase();
    this.#choices(items);
    const kind = this.#kinds.value;
    const found = items.filter(({ event }) => (!kind || event[1] === kind) && (!text || event.join(" ").toLowerCase().includes(text)));
    const shown = found.slice(-SHOWN).reverse();
    this.#table.draw(shown);
    this.#table.element.hidden = shown.length === 0;
    const missed = this.#stopped ? `, ${count(store.total - total)} since the pause` : "";
    const words = total ? `${count(total)} so far${missed}${text || kind ? ` · ${count(found.length)} found` : ""}` : "waiting for workers to tell something";
    setText(this.#words, words);
  }

  #choices(items: Item[]): void {
    const kinds = ["", ...new Set(items.map(({ event }) => event[1]))].sort();
    if (kinds.length === this.#kinds.options.length) return;
    const before = this.#kinds.value;
    this.#kinds.replaceChildren(...kinds.map((kind) => make("option", "", { value: kind }, kind || "all kinds")));
    this.#kinds.value = kinds.includes(before) ? before : "";
  }

  #toggle(): void {
    const { items, total } = this.channel.store;
    this.#stopped = this.#stopped ? null : { items, total };
    setText(this.#pause, this.#stopped ? "Go on" : "Pause");
    setAttribute(this.#pause, "aria-label", this.#stopped ? "Go on with the stream" : "Pause the stream");
    this.soon();
  }
}

/** Among what came before, by time. */
function insert(items: Item[], item: Item): void {
  const [at] = item.event;
  let place = items.length;
  while (place > 0 && items[place - 1]!.event[0] > at && items[place - 1]!.event[0] - at < LATE) place--;
  items.splice(place, 0, item);
}

function clock(at: number): string {
  const date = new Date(at * 1000);
  return `${date.toLocaleTimeString([], { hour12: false })}.${`${date.getMilliseconds()}`.padStart(3, "0")}`;
}

function draw(box: HTMLElement, kind: string): void {
  const state = kind.replace("task-", "");
  setAttribute(box.firstElementChild!, "class", `qnb-dot qnb-${state}`);
  setText(box.lastElementChild!, kind);
}

export default entry(() => new EventStore(), (channel) => new EventsView(channel));
