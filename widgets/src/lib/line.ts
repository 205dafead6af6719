import type { Column } from "./columns";
import { make } from "./dom";
import type { Rows } from "./rows";

/** Characters that a column may take. */
const WIDEST = 40;
export const WIDEST_RESULT = 84;
/** What the font may draw wider than one character: such cells alone are clipped, for clipping costs more than text. */
const UNUSUAL = /[^\x20-\x7e…·×]/;

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
  #unusual: boolean[] = [];
  #classes: string[] = [];
  #place = -1;
  #state = "";
  #class = "";
  #result = 0;

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

  /** Show a call at a place of the table. `widths` grow where a text needs it; true when one has. `result`: how much
   *  of its width the result has. */
  draw(place: number, index: number, rows: Rows, view: { columns: Column[]; elapsed: number; mark: string; widths: number[]; result: number; height: number }): boolean {
    const state = rows.state(index);
    if (place !== this.#place) {
      this.#place = place;
      // not by a transform: each would be a layer of its own to the painter
      this.element.style.top = `${place * view.height}px`;
      this.element.setAttribute("aria-rowindex", `${place + 2}`);
    }
    const name = `qnb-grid-row qnb-row-${state}${view.mark}`;
    if (name !== this.#class) this.element.className = this.#class = name;
    let wider = false;
    view.columns.forEach(({ id, number, text: textOf }, at) => {
      const text = textOf(index, view.elapsed);
      const cell = this.#cells[at]!;
      if (cell.dot && state !== this.#state) cell.dot.className = `qnb-dot qnb-${state}`;
      const bad = id === "result" && rows.bad(index);
      const fits = id !== "result" || view.result === this.#result;
      if (text === this.#shown[at] && fits) return this.#mark(at, bad, number);
      this.#shown[at] = text;
      const beside = cell.dot ? 4 : 2;
      const most = (id === "result" ? view.result : WIDEST) - beside;
      cell.text.data = text.length > most ? `${text.slice(0, most - 1)}…` : text;
      this.#unusual[at] = UNUSUAL.test(cell.text.data);
      this.#mark(at, bad, number);
      const width = Math.min(id === "result" ? WIDEST_RESULT : WIDEST, text.length + beside);
      if (width > view.widths[at]!) {
        view.widths[at] = width;
        wider = true;
      }
    });
    this.#state = state;
    this.#result = view.result;
    return wider;
  }

  #mark(at: number, bad: boolean, number: boolean): void {
    const name = (bad ? "qnb-error" : number ? "qnb-number" : "") + (this.#unusual[at] ? " qnb-clipped" : "");
    if (this.#classes[at] === name) return;
    this.#cells[at]!.box.className = this.#classes[at] = name;
  }
}
