import { make, resize, setAttribute, setText } from "./dom";

/** A column of a small table: text, or an element that is made once a row and drawn anew with each state. */
export interface Cell<T> {
  title: string;
  number?: boolean;
  text?(row: T): string;
  make?(row: () => T): HTMLElement;
  draw?(element: HTMLElement, row: T): void;
}

interface Line<T> {
  element: HTMLTableRowElement;
  row: T;
}

/** A table of few rows. A row keeps its elements for as long as its key is there, so that no button loses the focus. */
export class SmallTable<T> {
  readonly element: HTMLElement;
  #body = make("tbody");
  #lines = new Map<string, Line<T>>();
  #cells: Cell<T>[];
  #key: (row: T) => string;

  constructor(label: string, cells: Cell<T>[], key: (row: T) => string) {
    const heads = cells.map(({ title, number }) => make("th", number ? "qnb-number" : "", { scope: "col" }, title));
    const table = make("table", "", { "aria-label": label }, make("thead", "", {}, make("tr", "", {}, ...heads)), this.#body);
    this.element = make("div", "qnb-table", { role: "region", "aria-label": label, tabindex: "0" }, table);
    this.#cells = cells;
    this.#key = key;
  }

  draw(rows: readonly T[], className: (row: T) => string = () => ""): void {
    const keys = new Set(rows.map(this.#key));
    for (const [key, { element }] of this.#lines) {
      if (keys.has(key)) continue;
      element.remove();
      this.#lines.delete(key);
    }
    rows.forEach((row, place) => {
      const line = this.#line(row);
      line.row = row;
      if (this.#body.children[place] !== line.element) this.#body.insertBefore(line.element, this.#body.children[place] ?? null);
      setAttribute(line.element, "class", className(row) || null);
      this.#cells.forEach((cell, at) => {
        const box = line.element.children[at] as HTMLElement;
        if (cell.text) {
          const text = cell.text(row);
          setText(box, text);
          setAttribute(box, "title", text.length > 24 ? text : null);
        } else cell.draw?.(box.firstElementChild as HTMLElement, row);
      });
    });
  }

  #line(row: T): Line<T> {
    const key = this.#key(row);
    let line = this.#lines.get(key);
    if (!line) {
      const made: Line<T> = { row, element: make("tr") };
      for (const { title, number, make: inside } of this.#cells) {
        made.element.append(make("td", number ? "qnb-number" : "", { "data-title": title }, ...(inside ? [inside(() => made.row)] : [])));
      }
      this.#lines.set(key, (line = made));
    }
    return line;
  }
}

/** A button that says by its label what it does to what. */
export function button(text: string, label: string, act: () => void, className = "qnb-button"): HTMLButtonElement {
  const made = make("button", className, { type: "button", "aria-label": label, title: label }, text);
  made.addEventListener("click", act);
  return made;
}

/** A meter: how much of something is used. */
export function meter(): HTMLElement {
  return make("span", "qnb-meter", {}, make("i"), make("span"));
}

export function drawMeter(element: HTMLElement, share: number, text: string): void {
  const width = `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
  const fill = element.firstElementChild as HTMLElement;
  if (fill.style.getPropertyValue("--share") !== width) fill.style.setProperty("--share", width);
  setText(element.lastElementChild!, text);
}

/** A row of small bars: the latest of something, newest last. */
export class Spark {
  readonly element = make("span", "qnb-spark", { role: "img" });

  draw(values: readonly number[], label: string): void {
    const most = Math.max(1e-9, ...values);
    resize(this.element, values.length, () => make("i"));
    values.forEach((value, place) => {
      const bar = this.element.children[place] as HTMLElement;
      const height = `${Math.round((100 * value) / most)}%`;
      if (bar.style.height !== height) bar.style.height = height;
    });
    setAttribute(this.element, "aria-label", label);
  }
}
