import { make, resize, setAttribute, setText } from "./dom";
import { SHOWN, ended, inState } from "./protocol";
import type { Picture } from "./store";
import { count, percent } from "./words";

/** The bar by state, and below it what each colour means and how many calls it stands for. */
export class Bar {
  readonly element: HTMLElement;
  #track = make("div", "qnb-bar", { role: "progressbar", "aria-label": "Calls that have ended", "aria-valuemin": "0" });
  #legend = make("ul", "qnb-legend", { "aria-label": "Calls by state" });

  constructor() {
    this.element = make("div", "qnb-progress", {}, this.#track, this.#legend);
  }

  draw(picture: Picture): void {
    const { counts, total } = picture;
    const present = SHOWN.filter((state) => inState(counts, state) > 0);
    const done = ended(counts);
    setAttribute(this.#track, "aria-valuemax", `${total}`);
    setAttribute(this.#track, "aria-valuenow", `${done}`);
    setAttribute(this.#track, "aria-valuetext", `${percent(done, total)}, ${count(done)} of ${count(total)} calls`);
    resize(this.#track, present.length, () => make("div"));
    resize(this.#legend, present.length, () => make("li", "", {}, make("i"), make("b"), make("span")));
    present.forEach((state, place) => {
      const number = inState(counts, state);
      const segment = this.#track.children[place] as HTMLElement;
      setAttribute(segment, "class", `qnb-${state}`);
      segment.style.flexGrow = `${number}`;
      const [dot, value, word] = this.#legend.children[place]!.children;
      setAttribute(dot!, "class", `qnb-dot qnb-${state}`);
      setText(value!, count(number));
      setText(word!, state);
    });
  }
}
