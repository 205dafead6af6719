import type { Column } from "./columns";
import { make, setAttribute } from "./dom";
import { Line, WIDEST_RESULT } from "./line";
import type { Rows } from "./rows";

export const ROW = 24;
/** Rows that are seen at once, and those beyond that are drawn so that scrolling shows no gap. */
const SEEN = 10;
const BEYOND = 5;
/** How long after the last of a scroll that passed all of those the rows beyond are drawn again, in milliseconds. */
const REST = 120;
/** Characters that the results keep when they make room for the other columns. */
const LEAST_RESULT = 16;

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
  /** How many characters fit side by side. */
  #room = Infinity;
  #sizes: ResizeObserver | null = null;
  #lines: Line[] = [];
  #sized = false;
  /** How far it is scrolled: asking the page for it while it is being changed would have it laid out at once. */
  #top = 0;
  /** While more rows than those pass by at once, only rows in sight are drawn: the others would never be seen. */
  #rest: ReturnType<typeof setTimeout> | null = null;
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
      const row = (event.target as Element).closest("[role=row]");
      const line = this.#lines.find(({ element }) => element === row);
      if (line) this.#open(line.place);
    });
    if (typeof ResizeObserver !== "undefined") {
      this.#sizes = new ResizeObserver(([entry]) => this.#fit(entry!.contentRect.width));
      this.#sizes.observe(this.#scroller);
    }
  }

  close(): void {
    this.#sizes?.disconnect();
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
    if (Math.abs(this.#top - top) > 1) this.#scroller.scrollTop = this.#top = top;
    if (top === 0) this.#following = false;
  }

  #scrolled(): void {
    const before = this.#top;
    this.#top = this.#scroller.scrollTop;
    if (this.#rest !== null || Math.abs(this.#top - before) > BEYOND * ROW) {
      if (this.#rest !== null) clearTimeout(this.#rest);
      this.#rest = setTimeout(() => {
        this.#rest = null;
        this.#paint();
      }, REST);
    }
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
    this.#resize(0);
    this.#sized = false;
    setAttribute(this.#scroller, "aria-colcount", `${columns.length}`);
  }

  /** So many pixels wide from now on. */
  #fit(width: number): void {
    if (!width) return;
    const ruler = this.#scroller.appendChild(make("div", "qnb-ruler"));
    this.#room = Math.floor((100 * width) / ruler.getBoundingClientRect().width);
    ruler.remove();
    this.#sized = false;
    this.#paint();
  }

  /** How wide the results may be, for all columns to be in sight. */
  #result(): number {
    const others = this.#columns.reduce((sum, { id }, at) => sum + (id === "result" ? 0 : this.#widths[at]!), 0);
    return Math.min(WIDEST_RESULT, Math.max(LEAST_RESULT, this.#room - others));
  }

  /** Draw the rows in sight. */
  #paint(): void {
    const rows = this.#rows;
    if (!rows) return;
    const result = this.#result();
    const size = Math.min(this.length, SEEN + 2 * BEYOND + 1);
    const beyond = this.#rest === null ? BEYOND : 0;
    const number = Math.min(size, SEEN + 2 * beyond + 1);
    const first = Math.max(0, Math.min(this.length - number, Math.floor(this.#top / ROW) - beyond));
    const last = first + number;
    this.#resize(size);
    const lacking: number[] = [];
    let wider = false;
    // a row keeps its element for as long as it is near, so that scrolling a little changes little
    for (let place = first; place < last; place++) {
      const index = this.#order ? this.#order[place]! : place;
      const mark = `${index === this.#opened ? " qnb-opened" : ""}${place === this.#active ? " qnb-active" : ""}`;
      const view = { columns: this.#columns, elapsed: this.#elapsed, mark, widths: this.#widths, result, height: ROW };
      wider = this.#lines[place % size]!.draw(place, index, rows, view) || wider;
      if (rows.lacks(index)) lacking.push(index);
    }
    if (wider || !this.#sized) {
      this.#sized = result === this.#result();
      if (!this.#sized) return this.#paint(); // what others needed, the results have less
      const widths = this.#columns.map(({ id }, at) => (id === "result" ? Math.min(result, this.#widths[at]!) : this.#widths[at]!));
      this.#scroller.style.setProperty("--qnb-columns", widths.map((width) => `${width}ch`).join(" "));
      this.#scroller.style.setProperty("--qnb-width", `${widths.reduce((sum, width) => sum + width, 0)}ch`);
    }
    if (lacking.length) this.#asked.texts(lacking);
  }

  #resize(size: number): void {
    for (const line of this.#lines.splice(size)) line.element.remove();
    while (this.#lines.length < size) {
      const line = new Line(this.#columns);
      this.#lines.push(line);
      this.#body.append(line.element);
    }
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
      const { clientHeight } = this.#scroller;
      if (top < this.#top) this.#goTo(top);
      else if (top + 2 * ROW > this.#top + clientHeight) this.#goTo(top + 2 * ROW - clientHeight);
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
