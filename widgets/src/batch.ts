// The Batch view: progress by state, pace, failures, the rows that changed last, a button that cancels.
import "./batch.css";
import { Bar } from "./lib/bar";
import { Channel, type Model } from "./lib/channel";
import { make, setText } from "./lib/dom";
import { Failures } from "./lib/failures";
import { Head } from "./lib/head";
import { Table } from "./lib/table";
import type { Presence } from "./lib/protocol";
import { watchVisibility } from "./lib/visibility";
import { duration } from "./lib/words";

/** The clocks of a view go on between messages. */
const TICK = 1000;
/** The kernel says something every 2 s while a view is live; this long without a word is worth saying. */
const SILENCE = 7000;

class BatchView {
  readonly element: HTMLElement;
  #channel: Channel;
  #cancel = make("button", "qnb-button", { type: "button" }, "Cancel");
  #note = make("div", "qnb-note", { role: "status" });
  #head = new Head(this.#cancel);
  #parts = [this.#head, new Bar(), new Failures(), new Table()] as const;
  #asked: "" | "waiting" | "busy" | "heard" = "";
  #frame = 0;
  #timer: ReturnType<typeof setInterval>;
  #endings: (() => void)[];

  constructor(channel: Channel) {
    this.#channel = channel;
    this.element = make("section", "qnb-batch", { "aria-label": "Batch" });
    this.element.append(this.#head.element, ...this.#parts.slice(1).map((part) => part.element), this.#note);
    this.#cancel.addEventListener("click", () => void this.#stop());
    const view = Math.random().toString(36).slice(2);
    let n = 0;
    const tell = (kind: Presence): void => channel.send({ kind, view, n: n++ });
    const leave = (): void => tell("gone");
    window.addEventListener("pagehide", leave);
    this.#endings = [
      channel.store.subscribe(() => this.#soon()),
      watchVisibility(this.element, (visible) => tell(visible ? "shown" : "hidden")),
      () => window.removeEventListener("pagehide", leave),
      leave,
    ];
    this.#timer = setInterval(() => this.#soon(), TICK);
    this.draw();
    tell("ready");
  }

  close(): void {
    clearInterval(this.#timer);
    cancelAnimationFrame(this.#frame);
    for (const end of this.#endings.splice(0)) end();
  }

  draw(): void {
    const picture = this.#channel.store.picture;
    if (!picture) return;
    const now = performance.now();
    for (const part of this.#parts) part.draw(picture, now);
    this.element.setAttribute("aria-label", `Batch ${picture.name}`);
    this.#cancel.hidden = picture.over;
    this.#cancel.disabled = this.#asked !== "" && this.#asked !== "busy";
    const note = picture.over ? "" : this.#says(now);
    setText(this.#note, note);
    this.#note.hidden = !note;
    if (picture.over) clearInterval(this.#timer);
  }

  #soon(): void {
    if (this.#frame || document.visibilityState === "hidden") return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.draw();
    });
  }

  #says(now: number): string {
    const silent = now - this.#channel.heardAt;
    if (this.#asked === "busy") {
      return "The kernel is busy with a cell and will cancel after it. To stop the cell at once, press ■ above.";
    }
    if (silent > SILENCE) return `No news from the kernel for ${duration(silent / 1000)}.`;
    return { "": "", waiting: "", heard: "Cancelling: what has not started will not run." }[this.#asked];
  }

  async #stop(): Promise<void> {
    this.#asked = "waiting";
    this.draw();
    this.#asked = (await this.#channel.cancel()) ? "heard" : "busy";
    this.draw();
  }
}

/** anywidget calls this once a model. */
export default () => {
  let channel: Channel | undefined;
  const open = (model: Model): Channel => (channel ??= new Channel(model));
  return {
    initialize({ model }: { model: Model }): () => void {
      open(model);
      return () => {
        channel?.close();
        channel = undefined;
      };
    },
    render({ model, el }: { model: Model; el: HTMLElement }): () => void {
      const view = new BatchView(open(model));
      el.append(view.element);
      return () => view.close();
    },
  };
};
