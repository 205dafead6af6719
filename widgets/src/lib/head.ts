import { make, setText } from "./dom";
import { ended } from "./protocol";
import type { Picture } from "./store";
import { count, duration, left, percent, rate } from "./words";

/** The first line: what runs, how far it is, how fast, how long yet. Its clock goes on between messages. */
export class Head {
  readonly element: HTMLElement;
  #name = make("strong", "qnb-name");
  #progress = make("span");
  #pace = make("span", "qnb-pace");
  #right = make("span", "qnb-right");

  constructor(...buttons: Element[]) {
    this.#pace.title = "calls per time · since the start · still to go";
    this.#right.append(this.#pace, ...buttons);
    this.element = make("div", "qnb-head", {}, this.#name, this.#progress, this.#right);
  }

  draw(picture: Picture, now: number): void {
    setText(this.#name, picture.name);
    setText(this.#progress, progress(picture));
    setText(this.#pace, pace(picture, now));
  }
}

export function progress({ counts, total, over }: Picture): string {
  const done = ended(counts);
  if (over && done === total) return `${count(total)} ${total === 1 ? "call" : "calls"}`;
  return `${count(done)} of ${count(total)} · ${percent(done, total)}`;
}

export function pace(picture: Picture, now: number): string {
  const { over, elapsed, eta, total } = picture;
  if (over) {
    const words = [`in ${duration(elapsed)}`];
    if (elapsed > 0 && total > 1) words.push(rate(total / elapsed));
    return words.join(" · ");
  }
  const since = Math.max(0, now - picture.at) / 1000;
  const soon = eta === null ? "" : left(Math.max(0, eta - since));
  return [rate(picture.rate), duration(elapsed + since), soon].filter(Boolean).join(" · ");
}
