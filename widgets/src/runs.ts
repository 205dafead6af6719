// The Runs view: the history in the backend; a click attaches a run and shows its batch below.
import "./lib/qnb.css";
import type { Channel } from "./lib/channel";
import { copy } from "./lib/copy";
import { make, setText } from "./lib/dom";
import { LiveView, entry } from "./lib/live";
import { SmallTable, button, drawMeter, meter } from "./lib/small";
import { StateStore } from "./lib/store";
import { count, duration, plural } from "./lib/words";

interface Run {
  run: string;
  kind: string;
  name: string;
  calls: number;
  /** done, failed, cancelled, lost, open */
  ends: [number, number, number, number, number];
  at: number;
  session: string;
  mine: boolean;
}

export interface RunsState {
  runs: Run[];
  backend: string;
  limit: number;
  trouble?: string;
}

const SHOWN = 12;

class RunsView extends LiveView<StateStore<RunsState>> {
  #words = make("span", "qnb-dim");
  #filter = make("input", "qnb-input", { type: "search", placeholder: "Filter", "aria-label": "Filter runs by text" });
  #batch = make("div", "qnb-again");
  #open = "";
  #table: SmallTable<Run>;

  constructor(channel: Channel<StateStore<RunsState>>) {
    super(channel, "runs", "Runs");
    this.#table = new SmallTable<Run>("Runs", [
      { title: "run", make: (row) => button("", "", () => void this.#attach(row().run), "qnb-link"), draw: (box, { run }) => label(box, run) },
      { title: "what", text: ({ kind, name }) => `${kind} of ${name}` },
      { title: "calls", number: true, text: ({ calls }) => count(calls) },
      { title: "ended", make: meter, draw: (box, { calls, ends: [, , , , open] }) => drawMeter(box, calls ? (calls - open) / calls : 1, open ? `${count(open)} open` : "all") },
      { title: "failed", number: true, text: ({ ends: [, failed, , lost] }) => (failed + lost ? count(failed + lost) : "") },
      { title: "began", text: ({ at }) => when(at) },
      { title: "session", text: ({ session, mine }) => (mine ? "this one" : session) },
    ], ({ run }) => run);
    this.#filter.addEventListener("input", () => this.soon());
    this.#filter.addEventListener("keydown", (event) => event.stopPropagation());
    const head = make("div", "qnb-head", {}, make("strong", "qnb-name", {}, "runs"), this.#words, make("span", "qnb-right", {}, this.#filter));
    this.#table.element.classList.add("qnb-high");
    this.element.append(head, this.#table.element, this.#batch);
    const attached = channel.choices.get("attached") as [string, string] | undefined;
    if (attached) this.#place(...attached);
  }

  protected draw(): void {
    const { state } = this.channel.store;
    if (!state) return;
    const text = this.#filter.value.trim().toLowerCase();
    const found = state.runs.filter((run) => !text || `${run.run} ${run.kind} ${run.name} ${run.session}`.toLowerCase().includes(text));
    const rest = state.runs.length >= state.limit ? `, the newest ${state.limit}` : "";
    setText(this.#words, state.trouble ?? (state.runs.length ? `${plural(found.length, "run")}${rest} in ${state.backend} · click one to attach it` : `none yet in ${state.backend}`));
    this.#filter.hidden = state.runs.length < SHOWN;
    this.#table.element.hidden = found.length === 0;
    this.#table.draw(found, ({ run }) => (run === this.#open ? "qnb-opened" : ""));
  }

  async #attach(run: string): Promise<void> {
    const got = (await this.request("attach", { run }, `Attaching ${run} …`)) as { key: string } | undefined;
    if (!got) return;
    this.channel.choices.set("attached", [run, got.key]);
    this.#place(run, got.key);
    this.soon();
  }

  #place(run: string, key: string): void {
    this.#open = run;
    const code = `batch = session.attach(${JSON.stringify(run)})`;
    const take = button("Copy code", "Copy the code that attaches this run", () => void copy(code).then((done) => this.say(done ? `Copied: ${code}` : code, 10_000)));
    const close = button("×", "Close this run", () => {
      this.#open = "";
      this.channel.choices.delete("attached");
      this.#batch.replaceChildren();
      this.soon();
    });
    const head = make("div", "qnb-head", {}, make("code", "", {}, code), make("span", "qnb-right", {}, take, close));
    this.#batch.replaceChildren(head, make("div", `qnb-live qnb-live-${key}`));
  }
}

function label(box: HTMLElement, run: string): void {
  setText(box, run);
  box.setAttribute("aria-label", `Attach run ${run}`);
}

function when(at: number): string {
  const age = Date.now() / 1000 - at;
  if (age < 3600) return `${duration(Math.max(0, age))} ago`;
  return new Date(at * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

export default entry(() => new StateStore<RunsState>(), (channel) => new RunsView(channel));
