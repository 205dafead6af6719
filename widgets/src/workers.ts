// The Workers view: what each worker does, and the buttons that control it.
import "./lib/qnb.css";
import type { Channel } from "./lib/channel";
import { make, resize, setText } from "./lib/dom";
import { LiveView, entry } from "./lib/live";
import { SmallTable, button, drawMeter, meter } from "./lib/small";
import { StateStore } from "./lib/store";
import { bytes, count, duration, plural } from "./lib/words";

interface Task {
  id: string;
  name: string;
  since: number | null;
}

interface Worker {
  worker: string;
  here: boolean;
  /** Unix seconds. */
  seen: number;
  answers: boolean;
  tasks: Task[];
  host?: string;
  pid?: number;
  pool?: string;
  queues?: string[];
  paused?: string[];
  concurrency?: number;
  busy?: number;
  done?: number;
  failed?: number;
  python?: string;
  version?: string;
  memory?: number | null;
  cpu?: number | null;
  load?: number;
  started_at?: number;
}

export interface WorkersState {
  workers: Worker[];
  now: number;
  start: string;
  live: boolean;
  trouble?: string;
}

type State = "here" | "paused" | "gone" | "silent";

export function stateOf(worker: Worker): State {
  if (!worker.here) return "gone";
  if (worker.paused?.length) return "paused";
  return worker.answers ? "here" : "silent";
}

const SHOWN_TASKS = 4;

class WorkersView extends LiveView<StateStore<WorkersState>> {
  #title = make("strong", "qnb-name");
  #sum = make("span", "qnb-dim");
  #table: SmallTable<Worker>;
  #empty = make("div", "qnb-empty");
  #sure = "";

  constructor(channel: Channel<StateStore<WorkersState>>) {
    super(channel, "workers", "Workers");
    this.#table = new SmallTable<Worker>("Workers", [
      { title: "worker", make: () => make("span", "qnb-who", {}, make("i"), make("b"), make("span", "qnb-dim")), draw: (box, worker) => this.#who(box, worker) },
      { title: "busy", make: meter, draw: (box, { busy = 0, concurrency = 1 }) => drawMeter(box, busy / concurrency, `${busy} of ${concurrency}`) },
      { title: "CPU", number: true, text: ({ cpu }) => (cpu == null ? "" : `${Math.round(cpu * 100)} %`) },
      { title: "memory", number: true, text: ({ memory }) => (memory ? bytes(memory) : "") },
      { title: "done", number: true, text: ({ done = 0 }) => count(done) },
      { title: "failed", number: true, text: ({ failed = 0 }) => (failed ? count(failed) : "") },
      { title: "running now", make: () => make("ul", "qnb-tasks"), draw: (box, worker) => this.#tasks(box, worker) },
      { title: "", make: (row) => this.#buttons(row), draw: (box, worker) => this.#state(box, worker) },
    ], ({ worker }) => worker);
    this.element.append(make("div", "qnb-head", {}, this.#title, this.#sum), this.#table.element, this.#empty);
  }

  protected draw(): void {
    const { state } = this.channel.store;
    if (!state) return;
    const here = state.workers.filter(({ here }) => here);
    const sum = (value: (worker: Worker) => number | undefined): number => here.reduce((all, worker) => all + (value(worker) ?? 0), 0);
    setText(this.#title, here.length ? plural(here.length, "worker") : "No workers");
    const lanes = sum(({ concurrency }) => concurrency ?? 1);
    const words = [`${count(sum(({ busy }) => busy))} of ${plural(lanes, "process", "processes")} busy`, `${bytes(sum(({ memory }) => memory ?? 0))} in all`];
    setText(this.#sum, state.trouble ?? (here.length ? words.join(" · ") : ""));
    this.#table.element.hidden = state.workers.length === 0;
    this.#empty.hidden = here.length > 0;
    setText(this.#empty, `Start one with  ${state.start}`);
    this.#table.draw(state.workers, ({ here }) => (here ? "" : "qnb-gone"));
  }

  #who(box: HTMLElement, worker: Worker): void {
    const state = stateOf(worker);
    const [dot, name, words] = box.children;
    dot!.className = `qnb-dot qnb-is-${state}`;
    setText(name!, worker.worker);
    const age = this.#now() - worker.seen;
    const since = { here: `seen ${age < 5 ? "now" : `${duration(age)} ago`}`, paused: "paused", silent: "does not answer", gone: `gone, last seen ${duration(Math.max(0, age))} ago` }[state];
    const version = [worker.version && `qnb ${worker.version}`, worker.python && `Python ${worker.python}`].filter(Boolean).join(", ");
    setText(words!, [since, worker.host && `${worker.host} pid ${worker.pid}`, worker.queues?.length && `${worker.queues.length > 1 ? "queues" : "queue"} ${worker.queues.join(", ")}`, version].filter(Boolean).join(" · "));
  }

  /** The kernel's clock, which the times are of. */
  #now(): number {
    const { state, at } = this.channel.store;
    return (state?.now ?? 0) + (performance.now() - at) / 1000;
  }

  #tasks(list: HTMLElement, { worker, tasks, here }: Worker): void {
    const shown = here ? tasks.slice(0, SHOWN_TASKS) : [];
    const more = here ? tasks.length - shown.length : 0;
    resize(list, shown.length + (more > 0 ? 1 : 0), () => {
      const line = make("li", "", {}, make("b"), make("span", "qnb-dim"));
      line.append(button("end", "End this task", () => void this.#ask("revoke", { worker: line.dataset.worker, task: line.dataset.task }), "qnb-link"));
      return line;
    });
    shown.forEach(({ id, name, since }, place) => {
      const line = list.children[place] as HTMLElement;
      Object.assign(line.dataset, { worker, task: id });
      setText(line.children[0]!, name);
      const seconds = since === null ? "" : duration(since + (performance.now() - this.channel.store.at) / 1000);
      setText(line.children[1]!, `${seconds} ${id}`);
      line.children[2]!.setAttribute("aria-label", `End task ${id}`);
      (line.children[2] as HTMLElement).hidden = false;
    });
    if (more <= 0) return;
    const last = list.lastElementChild!;
    setText(last.children[0]!, "");
    setText(last.children[1]!, `and ${more} more`);
    (last.children[2] as HTMLElement).hidden = true;
  }

  #buttons(row: () => Worker): HTMLElement {
    const { worker } = row();
    const act = (what: string) => (): void => void this.#ask(what, { worker });
    const pause = button("pause", `Pause ${worker}`, () => void this.#ask(stateOf(row()) === "paused" ? "resume" : "pause", { worker }));
    return make("span", "qnb-actions", {}, pause,
      button("+", `One process more for ${worker}`, act("grow")),
      button("−", `One process fewer for ${worker}`, act("shrink")),
      button("shut down", `Shut down ${worker}`, () => this.#shutdown(worker)));
  }

  #state(box: HTMLElement, worker: Worker): void {
    const paused = stateOf(worker) === "paused";
    const [pause, , shrink, end] = [...box.children] as HTMLButtonElement[];
    setText(pause!, paused ? "resume" : "pause");
    pause!.setAttribute("aria-label", `${paused ? "Resume" : "Pause"} ${worker.worker}`);
    shrink!.disabled = (worker.concurrency ?? 1) <= 1;
    setText(end!, this.#sure === worker.worker ? "sure?" : "shut down");
    box.hidden = !worker.here || !this.channel.store.state?.live;
  }

  /** Its first click asks, the second does it. */
  #shutdown(worker: string): void {
    if (this.#sure === worker) {
      this.#sure = "";
      void this.#ask("shutdown", { worker });
      return;
    }
    this.#sure = worker;
    setTimeout(() => {
      this.#sure = "";
      this.soon();
    }, 4000);
    this.soon();
  }

  async #ask(what: string, argument: Record<string, unknown>): Promise<void> {
    const said = await this.request(what, argument);
    if (said) this.say(String(said));
  }
}

export default entry(() => new StateStore<WorkersState>(), (channel) => new WorkersView(channel));
