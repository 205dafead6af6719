import type { Column } from "./columns";
import { make, resize, setAttribute, setText } from "./dom";
import type { Rows } from "./rows";

export const ROW = 24;
/** Rows that are seen at once, and those beyond that are drawn so that scrolling shows no gap. */
const SEEN = 10;
const BEYOND = 8;
/** Characters that a column may take. */
const WIDEST = 40;
const WIDEST_RESULT = 56;

export interface Asked {
  sort(column: string): void;
  open(index: number): void;
  texts(indices: number[]): void;
}

/** The results table: as many rows as there are, of which those in sight are drawn. */
export class Grid {
  readonly element: HTMLElement;
  #head = make("div", "qnb-grid-row qnb-grid-head", { role: "row", "aria-rowindex": "1" });
  #body = make("div", "qnb-grid-body", { role: "rowgroup" });
  #scroller: HTMLElement;
  #columns: Column[] = [];
  #widths: number[] = [];
  #laidOut = "";
  #order: Uint32Array | null = null;
  #rows: Rows | null = null;
  #elapsed = 0;
  #active = -1;
  #opened = -1;
  #following = true;
  #moved = false;
  #asked: Asked;

  constructor(asked: Asked) {
    this.#asked = asked;
    const head = make("div", "qnb-grid-top", { role: "rowgroup" }, this.#head);
    const label = { role: "grid", "aria-label": "Calls", tabindex: "0" };
    this.#scroller = make("div", "qnb-grid", label, head, this.#body);
    this.element = this.#scroller;
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#scroller.addEventListener("keydown", (event) => this.#key(event));
    this.#body.addEventListener("click", (event) => {
      const line = (event.target as Element).closest<HTMLElement>("[data-place]");
      if (line) this.#open(Number(line.dataset.place));
    });
  }

  get length(): number {
    return this.#order ? this.#order.length : (this.#rows?.count ?? 0);
  }

  /** `order`: call numbers, null for all; `follow`: keep what ended last in sight, until people scroll. */
  draw(rows: Rows, columns: Column[], order: Uint32Array | null, view: { elapsed: number; follow: boolean; sort: string; down: boolean; opened: number }): void {
    const key = columns.map(({ id, number }) => `${id}${number}`).join("\n");
    this.#columns = columns;
    if (key !== this.#laidOut) this.#layOut(columns, key);
    [this.#rows, this.#order, this.#elapsed, this.#opened] = [rows, order, view.elapsed, view.opened];
    const height = `${this.length * ROW}px`;
    if (this.#body.style.height !== height) {
      this.#body.style.height = height;
      this.#scroller.style.maxHeight = `${(SEEN + 1) * ROW}px`;
      setAttribute(this.#scroller, "aria-rowcount", `${this.length + 1}`);
    }
    for (const [place, { id }] of columns.entries()) {
      const sorted = view.sort === id ? (view.down ? "descending" : "ascending") : null;
      setAttribute(this.#head.children[place]!, "aria-sort", sorted);
    }
    if (view.follow && !this.#moved && order === null) this.#follow(rows.newest);
    else if (this.#following && !this.#moved) this.#goTo(0);
    this.#paint();
  }

  #follow(newest: number): void {
    this.#following = true;
    this.#goTo(Math.max(0, (newest - SEEN + 4) * ROW));
  }

  #goTo(top: number): void {
    if (Math.abs(this.#scroller.scrollTop - top) > 1) this.#scroller.scrollTop = top;
    if (top === 0) this.#following = false;
  }

  #scrolled(): void {
    this.#paint();
  }

  #layOut(columns: Column[], key: string): void {
    this.#laidOut = key;
    this.#widths = columns.map(({ title }) => title.length + 4);
    const heads = columns.map(({ id, title, number }) => {
      const button = make("button", "", { type: "button", title: `sort by ${title}` }, title);
      button.addEventListener("click", () => this.#asked.sort(id));
      return make("div", number ? "qnb-number" : "", { role: "columnheader" }, button);
    });
    this.#head.replaceChildren(...heads);
    this.#body.replaceChildren();
    setAttribute(this.#scroller, "aria-colcount", `${columns.length}`);
  }

  /** Draw the rows in sight. */
  #paint(): void {
    const rows = this.#rows;
    if (!rows) return;
    const first = Math.max(0, Math.floor(this.#scroller.scrollTop / ROW) - BEYOND);
    const last = Math.min(this.length, first + SEEN + 2 * BEYOND + 1);
    resize(this.#body, Math.max(0, last - first), () => this.#blank());
    const lacking: number[] = [];
    let wider = false;
    for (let place = first; place < last; place++) {
      const index = this.#order ? this.#order[place]! : place;
      wider = this.#line(this.#body.children[place - first] as HTMLElement, place, index, rows) || wider;
      if (rows.lacks(index)) lacking.push(index);
    }
    if (wider) this.#scroller.style.setProperty("--qnb-columns", this.#widths.map((width) => `${width}ch`).join(" "));
    if (lacking.length) this.#asked.texts(lacking);
  }

  #blank(): HTMLElement {
    const cells = this.#columns.map(({ id, number }) => {
      const cell = make("div", number ? "qnb-number" : "", { role: "gridcell" });
      if (id === "state") cell.append(make("i"), make("span"));
      return cell;
    });
    return make("div", "qnb-grid-row", { role: "row" }, ...cells);
  }

  #line(line: HTMLElement, place: number, index: number, rows: Rows): boolean {
    const state = rows.state(index);
    const chosen = `${index === this.#opened ? " qnb-opened" : ""}${place === this.#active ? " qnb-active" : ""}`;
    setAttribute(line, "class", `qnb-grid-row qnb-row-${state}${chosen}`);
    setAttribute(line, "aria-rowindex", `${place + 2}`);
    setAttribute(line, "data-place", `${place}`);
    const top = `translateY(${place * ROW}px)`;
    if (line.style.transform !== top) line.style.transform = top;
    let wider = false;
    this.#columns.forEach((column, at) => {
      const cell = line.children[at]!;
      const text = column.text(index, this.#elapsed);
      if (column.id === "state") {
        setAttribute(cell.firstElementChild!, "class", `qnb-dot qnb-${state}`);
        setText(cell.lastElementChild!, text);
      } else setText(cell, text);
      if (column.id === "result") setAttribute(cell, "class", rows.bad(index) ? "qnb-error" : column.number ? "qnb-number" : null);
      const width = Math.min(column.id === "result" ? WIDEST_RESULT : WIDEST, text.length + (column.id === "state" ? 4 : 2));
      if (width > this.#widths[at]!) {
        this.#widths[at] = width;
        wider = true;
      }
    });
    return wider || !this.#scroller.style.getPropertyValue("--qnb-columns");
  }

  /** From now on nothing scrolls but by hand. */
  hold(): void {
    this.#moved = true;
  }

  #open(place: number): void {
    this.hold();
    this.#active = place;
    this.#asked.open(this.#order ? this.#order[place]! : place);
    this.#paint();
  }

  #key(event: KeyboardEvent): void {
    const steps: Record<string, number> = {
      ArrowDown: 1, ArrowUp: -1, PageDown: SEEN, PageUp: -SEEN, Home: -this.length, End: this.length,
    };
    const step = steps[event.key];
    const inButton = event.target !== this.#scroller;
    if (event.key === "Enter" && this.#active >= 0 && !inButton) this.#open(this.#active);
    else if (step !== undefined) {
      this.hold();
      this.#active = Math.min(this.length - 1, Math.max(0, this.#active + step));
      const top = this.#active * ROW;
      const { scrollTop, clientHeight } = this.#scroller;
      if (top < scrollTop) this.#scroller.scrollTop = top;
      else if (top + 2 * ROW > scrollTop + clientHeight) this.#scroller.scrollTop = top + 2 * ROW - clientHeight;
      this.#paint();
    } else return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has its own meaning for these
  }

  /** Called for the wheel and for touch, which a script's own scrolling is not. */
  watchHands(): void {
    for (const kind of ["wheel", "pointerdown", "touchmove"]) {
      this.#scroller.addEventListener(kind, () => this.hold(), { passive: true });
    }
  }
}
