import { make, resize, setAttribute, setText } from "./dom";
import type { Picture } from "./store";
import { count } from "./words";

const SHOWN = 3;

/** Failures by the class of their exception, one line each, with one message as an example; a click opens that call. */
export class Failures {
  readonly element = make("ul", "qnb-failures", { "aria-label": "Failures" });
  #open: (kind: string) => void;
  #all = false;

  constructor(open: (kind: string) => void) {
    this.#open = open;
  }

  draw(picture: Picture): void {
    const { failures } = picture;
    const shown = this.#all ? failures.length : Math.min(failures.length, SHOWN);
    const more = failures.length - shown;
    this.element.hidden = failures.length === 0;
    resize(this.element, shown + (more > 0 ? 1 : 0), () => this.#line());
    failures.slice(0, shown).forEach(([type, times, message], place) => {
      this.#fill(place, [type, `×\u2009${count(times)}`, message], `${message}\nshow the traceback of one`);
    });
    if (more > 0) this.#fill(shown, ["", "", `and ${more} more ${more === 1 ? "kind" : "kinds"} of failure`], "show all");
  }

  #line(): HTMLElement {
    const button = make("button", "", { type: "button" }, make("b"), make("span", "qnb-times"), make("span", "qnb-message"));
    button.addEventListener("click", () => {
      const kind = button.firstElementChild!.textContent ?? "";
      if (kind) this.#open(kind);
      else this.#all = true;
    });
    return make("li", "", {}, button);
  }

  #fill(place: number, texts: string[], title: string): void {
    const button = this.element.children[place]!.firstElementChild!;
    texts.forEach((text, part) => setText(button.children[part]!, text));
    setAttribute(button, "title", title);
  }
}
