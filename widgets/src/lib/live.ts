import { Channel, RESTARTED, type Model, type Store } from "./channel";
import { make, setText } from "./dom";
import { mount, type Mounted } from "./mount";
import type { Presence } from "./protocol";
import { watchVisibility } from "./visibility";
import { duration } from "./words";

/** The clocks of a view go on between messages. */
const TICK = 1000;
/** The kernel says something every 2 s while a view is live; this long without a word is worth saying. */
const SILENCE = 7000;
/** How long a word that all went well stands. */
const SAID = 6000;
const BUSY = "The kernel is busy with a cell and will do this after it. To stop the cell at once, press ■ above.";

/** What every view is: it tells the kernel whether it is seen, draws once a frame, and says how requests went. */
export abstract class LiveView<S extends Store> implements Mounted {
  readonly element: HTMLElement;
  protected readonly channel: Channel<S>;
  protected readonly note = make("div", "qnb-note", { role: "status" });
  #busy = 0;
  #visible = true;
  #said = "";
  #saidUntil = 0;
  #frame = 0;
  #timer: ReturnType<typeof setInterval>;
  #endings: (() => void)[] = [];
  /** Where a widget manager puts it, until that is known to be in an output. */
  #place: Element | null = null;
  #tell: (kind: Presence) => void;

  constructor(channel: Channel<S>, name: string, label: string) {
    this.channel = channel;
    this.element = make("section", `qnb-view qnb-${name}`, { "aria-label": label });
    const view = Math.random().toString(36).slice(2);
    let n = 0;
    this.#tell = (kind) => channel.send({ kind, view, n: n++ });
    this.#timer = setInterval(() => this.soon(), TICK);
  }

  /** Once the parts are in place. `place`: where a widget manager puts it. If that is an output, the output may become
   * HTML, in which a view will stand. */
  start(place: Element | null = null): this {
    this.element.append(this.note);
    const away = (): void => this.#tell("away");
    window.addEventListener("pagehide", away);
    this.#endings = [
      this.channel.store.subscribe(() => this.soon()),
      watchVisibility(this.element, (visible) => {
        this.#visible = visible;
        // while it was hidden the kernel had no reason to speak
        if (visible) this.channel.heardAt = performance.now();
        this.#tell(visible ? "shown" : "hidden");
      }),
      () => window.removeEventListener("pagehide", away),
      () => this.#tell("gone"),
    ];
    this.#draw();
    this.#tell("ready");
    this.#place = place;
    this.#placed();
    return this;
  }

  /** Tell, once, that it stands in an output: a manager may put it there long after it was made. */
  #placed(): void {
    if (!this.#place?.closest(".jp-OutputArea")) return;
    this.#place = null;
    this.channel.send({ kind: "placed" });
  }

  close(): void {
    clearInterval(this.#timer);
    cancelAnimationFrame(this.#frame);
    for (const end of this.#endings.splice(0)) end();
  }

  protected abstract draw(now: number): void;

  /** Draw with the next frame. */
  protected soon(): void {
    if (this.#frame || document.visibilityState === "hidden") return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  /** Ask the kernel, and say what becomes of it. The value, or undefined when it could not be done. */
  protected async request(what: string, argument: Record<string, unknown> = {}, doing = ""): Promise<unknown> {
    let busy = false;
    this.say(doing);
    const answer = await this.channel.ask(what, argument, () => {
      busy = true;
      this.#busy++;
      this.#draw();
    });
    if (busy) this.#busy--;
    this.say(answer.ok ? "" : String(answer.value), answer.ok ? 0 : Infinity);
    return answer.ok ? answer.value : undefined;
  }

  /** A sentence below the view, for a while. */
  protected say(text: string, milliseconds = SAID): void {
    this.#said = text;
    this.#saidUntil = performance.now() + milliseconds;
    this.soon();
  }

  #draw(): void {
    const now = performance.now();
    this.draw(now);
    this.#placed();
    const silent = now - this.channel.heardAt;
    const said = now < this.#saidUntil ? this.#said : "";
    const lost = this.#visible && !this.channel.store.over && silent > SILENCE;
    const text = this.channel.restarted ? RESTARTED : this.#busy ? BUSY : said || (lost ? `No news from the kernel for ${duration(silent / 1000)}.` : "");
    setText(this.note, text);
    this.note.hidden = !text;
  }
}

/** What anywidget calls, once a model: the default export of an entry. */
export function entry<S extends Store>(store: () => S, view: (channel: Channel<S>) => LiveView<S>) {
  return () => {
    let channel: Channel<S> | undefined;
    const open = (model: Model): Channel<S> => (channel ??= new Channel(model, store()));
    return {
      initialize({ model }: { model: Model }): () => void {
        const opened = open(model);
        const unmount = opened.key ? mount(opened.key, () => view(opened).start()) : () => {};
        return () => {
          unmount();
          channel?.close();
          channel = undefined;
        };
      },
      render({ model, el }: { model: Model; el: HTMLElement }): () => void {
        const made = view(open(model)).start(el);
        el.append(made.element);
        return () => {
          made.close();
          made.element.remove(); // the widget manager keeps `el` for a long time
        };
      },
    };
  };
}
