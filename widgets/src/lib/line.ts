import type { Column } from "./columns";
import { make } from "./dom";
import type { Rows } from "./rows";

/** Characters that a column may take. */
const WIDEST = 40;
const WIDEST_RESULT = 56;

interface Cell {
  box: HTMLElement;
  dot: HTMLElement | null;
  text: Text;
}

/** One row of the results table. It remembers what it shows, for asking the page would cost more than drawing. */
export class Line {
  readonly element = make("div", "qnb-grid-row", { role: "row" });
  #cells: Cell[];
  #shown: string[] = [];
  #classes: string[] = [];
  #place = -1;
  #state = "";
  #class = "";

  constructor(columns: Column[]) {
    this.#cells = columns.map(({ id, number }) => {
      const text = document.createTextNode("");
      const dot = id === "state" ? make("i") : null;
      const box = make("div", number ? "qnb-number" : "", { role: "gridcell" }, ...(dot ? [dot] : []), text);
      return { box, dot, text };
    });
    this.element.append(...this.#cells.map(({ box }) => box));
  }

  get place(): number {
    return this.#place;
  }

  /** Show a call at a place of the table. `widths` grow where a text needs it; true when one has. */
  draw(place: number, index: number, rows: Rows, view: { columns: Column[]; elapsed: number; mark: string; widths: number[]; height: number }): boolean {
    const state = rows.state(index);
    if (place !== this.#place) {
      this.#place = place;
      this.element.style.transform = `translateY(${place * view.height}px)`;
      this.element.setAttribute("aria-rowindex", `${place + 2}`);
    }
    const name = `qnb-grid-row qnb-row-${state}${view.mark}`;
    if (name !== this.#class) this.element.className = this.#class = name;
    let wider = false;
    view.columns.forEach(({ id, number, text: textOf }, at) => {
      const text = textOf(index, view.elapsed);
      const cell = this.#cells[at]!;
      if (cell.dot && state !== this.#state) cell.dot.className = `qnb-dot qnb-${state}`;
      if (id === "result") this.#mark(at, rows.bad(index) ? "qnb-error" : number ? "qnb-number" : "");
      if (text === this.#shown[at]) return;
      cell.text.data = this.#shown[at] = text;
      const width = Math.min(id === "result" ? WIDEST_RESULT : WIDEST, text.length + (cell.dot ? 4 : 2));
      if (width > view.widths[at]!) {
        view.widths[at] = width;
        wider = true;
      }
    });
    this.#state = state;
    return wider;
  }

  #mark(at: number, name: string): void {
    if (this.#classes[at] === name) return;
    this.#cells[at]!.box.className = this.#classes[at] = name;
  }
}
