// The Session view: where it works, what waits, who works, how fast.
import "./lib/qnb.css";
import type { Channel } from "./lib/channel";
import { make, resize, setText } from "./lib/dom";
import { LiveView, entry } from "./lib/live";
import { Spark, drawMeter, meter } from "./lib/small";
import { StateStore } from "./lib/store";
import { count, percent, plural, rate } from "./lib/words";

export interface SessionState {
  name: string;
  broker: string;
  backend: string;
  /** What an embedded file takes and may take; "" of a server. */
  room: string;
  queue: string;
  /** [name, how many wait; null where the broker cannot tell] */
  queues: [string, number | null][];
  workers: number;
  lanes: number;
  busy: number;
  starting: boolean;
  start: string;
  pending: number;
  rate: number;
  history: number[];
  /** [run, name, calls, done, failed, cancelled, lost] */
  runs: [string, string, number, number, number, number, number][];
  closed: boolean;
  trouble?: string;
}

class SessionView extends LiveView<StateStore<SessionState>> {
  #state = make("span", "qnb-dim");
  #facts = make("dl", "qnb-facts");
  #numbers = make("div", "qnb-numbers");
  #spark = new Spark();
  #runs = make("ul", "qnb-latest", { "aria-label": "Runs of this session" });

  constructor(channel: Channel<StateStore<SessionState>>) {
    super(channel, "session", "Session");
    const head = make("div", "qnb-head", {}, make("strong", "qnb-name", {}, "session"), this.#state);
    this.element.append(head, this.#numbers, this.#facts, this.#runs);
    for (const [word, inside] of [["waiting", make("b")], ["processes busy", make("b")], ["ended lately, all workers", make("b")]] as const) {
      this.#numbers.append(make("div", "", {}, inside, make("span", "", {}, word)));
    }
    this.#numbers.lastElementChild!.append(this.#spark.element);
  }

  protected draw(): void {
    const { state } = this.channel.store;
    if (!state) return;
    setText(this.#state, state.trouble ?? (state.closed ? "closed" : state.pending ? `${plural(state.pending, "call")} of its own under way` : "idle"));
    const told = state.queues.filter(([, depth]) => depth !== null);
    const waiting = told.reduce((sum, [, depth]) => sum + (depth ?? 0), 0);
    const [first, second, third] = [...this.#numbers.children].map((box) => box.firstElementChild!);
    setText(first!, state.queues.length && !told.length ? "?" : count(waiting));
    setText(second!, `${count(state.busy)} of ${count(state.lanes)}`);
    setText(third!, rate(state.rate) || "0");
    this.#spark.draw(state.history, `Calls a second in the last minute, at most ${rate(Math.max(0, ...state.history)) || "0"}`);
    this.#fill([
      ["broker", state.broker],
      ["backend", state.backend],
      ...(state.room ? [["on disk", state.room] satisfies [string, string]] : []),
      ["queues", state.queues.map(([name, depth]) => `${name}: ${depth === null ? "not told" : count(depth)}`).join(" · ") || state.queue],
      ["workers", workers(state)],
    ]);
    this.#drawRuns(state);
  }

  #fill(pairs: [string, string][]): void {
    resize(this.#facts, 2 * pairs.length, () => make(this.#facts.children.length % 2 ? "dd" : "dt"));
    pairs.flat().forEach((text, place) => setText(this.#facts.children[place]!, text));
  }

  #drawRuns({ runs }: SessionState): void {
    this.#runs.hidden = runs.length === 0;
    resize(this.#runs, runs.length, () => make("li", "", {}, make("b"), meter(), make("span", "qnb-dim")));
    [...runs].reverse().forEach(([run, name, calls, done, failed, cancelled, lost], place) => {
      const [title, bar, words] = [...this.#runs.children[place]!.children] as HTMLElement[];
      setText(title!, name);
      const ended = done + failed + cancelled + lost;
      drawMeter(bar!, calls ? ended / calls : 1, percent(ended, calls));
      setText(words!, [plural(calls, "call"), failed && `${count(failed)} failed`, lost && `${count(lost)} lost`, run].filter(Boolean).join(" · "));
    });
  }
}

export function workers({ workers, lanes, starting, start }: SessionState): string {
  if (starting) return "starting";
  if (!workers) return `none: start one with  ${start}`;
  return `${plural(workers, "worker")} with ${plural(lanes, "process", "processes")}`;
}

export default entry(() => new StateStore<SessionState>(), (channel) => new SessionView(channel));
