import { make, resize, setAttribute, setText } from "./dom";
import type { Picture } from "./store";
import { count } from "./words";

const SHOWN = 3;

/** Failures by the class of their exception, one line each, with one message as an example. */
export class Failures {
  readonly element = make("ul", "qnb-failures", { "aria-label": "Failures" });

  draw({ failures }: Picture): void {
    const more = failures.length - SHOWN;
    this.element.hidden = failures.length === 0;
    resize(this.element, Math.min(failures.length, SHOWN) + (more > 0 ? 1 : 0), () =>
      make("li", "", {}, make("b"), make("span", "qnb-times"), make("span", "qnb-message")),
    );
    failures.slice(0, SHOWN).forEach(([type, times, message], place) => {
      this.#line(place, type, `×\u2009${count(times)}`, message);
    });
    if (more > 0) this.#line(SHOWN, "", "", `and ${more} more ${more === 1 ? "kind" : "kinds"} of failure`);
  }

  #line(place: number, type: string, times: string, message: string): void {
    const line = this.element.children[place]!;
    [type, times, message].forEach((text, part) => setText(line.children[part]!, text));
    setAttribute(line, "title", message);
  }
}
