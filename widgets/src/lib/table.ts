import { make, resize, setAttribute, setText } from "./dom";
import type { Picture, Row } from "./store";
import { count, duration } from "./words";

const NUMBER = /^[-+]?[\d.,_]*\d(e[-+]?\d+)?%?$|^[-+]?(nan|inf)$|^$/i;
/** Characters that a column keeps for itself at most. */
const WIDEST = 40;
const FAILED = new Set(["failed", "lost"]);

interface Column {
  title: string;
  kind: "number" | "parameter" | "result" | "state" | "time" | "worker";
  text(row: Row, now: number): string;
}

/** The rows that changed last, in the order of their call numbers. */
export class Table {
  readonly element: HTMLElement;
  #heads = make("tr");
  #body = make("tbody");
  #foot = make("div", "qnb-foot");
  #columns: Column[] = [];
  #widest: number[] = [];
  #parameters = "";

  constructor() {
    const table = make("table", "", {}, make("thead", "", {}, this.#heads), this.#body);
    const label = { role: "region", "aria-label": "The calls that changed last", tabindex: "0" };
    this.element = make("div", "", {}, make("div", "qnb-table", label, table), this.#foot);
  }

  draw(picture: Picture, now: number): void {
    const key = JSON.stringify(picture.parameters);
    if (key !== this.#parameters || this.#columns.length === 0) this.#layOut(picture.parameters, key);
    const texts = picture.rows.map((row) => this.#columns.map((column) => column.text(row, now)));
    resize(this.#body, picture.rows.length, () => this.#blank());
    picture.rows.forEach((row, place) => this.#fill(this.#body.children[place]!, row, texts[place]!));
    this.#shape(texts);
    this.element.hidden = picture.total === 0;
    const few = picture.rows.length < picture.total;
    setText(this.#foot, few ? `${picture.rows.length} of ${count(picture.total)} rows, the last that changed` : "");
    this.#foot.hidden = !few;
  }

  #layOut(parameters: string[], key: string): void {
    this.#parameters = key;
    this.#columns = [
      { title: "call", kind: "number", text: (row) => `${row.index}` },
      ...parameters.map((title, place): Column => {
        return { title, kind: "parameter", text: (row) => row.parameters[place] ?? "" };
      }),
      { title: "result", kind: "result", text: (row) => row.result },
      { title: "state", kind: "state", text: (row) => row.state + (row.attempts > 1 ? `, try ${row.attempts}` : "") },
      { title: "time", kind: "time", text: runTime },
      { title: "worker", kind: "worker", text: (row) => row.worker },
    ];
    this.#widest = this.#columns.map(({ title }) => title.length);
    const heads = this.#columns.map(({ title, kind }) => make("th", `qnb-of-${kind}`, { scope: "col", title }, title));
    this.#heads.replaceChildren(...heads);
    this.#body.replaceChildren();
  }

  #blank(): Element {
    const cells = this.#columns.map(({ kind }) => {
      return kind === "state" ? make("td", "", {}, make("i"), make("span")) : make("td", `qnb-of-${kind}`);
    });
    return make("tr", "", {}, ...cells);
  }

  #fill(line: Element, row: Row, texts: string[]): void {
    setAttribute(line, "class", `qnb-row-${row.state}`);
    this.#columns.forEach(({ kind }, place) => {
      const cell = line.children[place]!;
      const text = texts[place]!;
      if (kind === "state") {
        setAttribute(cell.firstElementChild!, "class", `qnb-dot qnb-${row.state}`);
        setText(cell.lastElementChild!, text);
        return;
      }
      setText(cell, text);
      setAttribute(cell, "title", text.length > 20 ? text : null);
      if (kind === "result") cell.classList.toggle("qnb-error", FAILED.has(row.state));
    });
  }

  /** Numbers stand right; a column once wide stays so, or the table would tremble ten times a second. */
  #shape(texts: string[][]): void {
    this.#columns.forEach(({ kind }, place) => {
      const head = this.#heads.children[place] as HTMLElement;
      const column = texts.map((line) => line[place]!);
      const right = kind === "time" || (column.some(Boolean) && column.every((text) => NUMBER.test(text)));
      const cells = Array.from(this.#body.children, (line) => line.children[place]!);
      for (const cell of [head, ...cells]) cell.classList.toggle("qnb-number", right);
      const widest = Math.min(WIDEST, Math.max(this.#widest[place]!, ...column.map((text) => text.length)));
      this.#widest[place] = widest;
      head.style.minWidth = `${widest}ch`;
    });
  }
}

function runTime(row: Row, now: number): string {
  if (row.runtime === null) return "";
  return duration(row.runtime + (row.state === "running" ? Math.max(0, now - row.at) / 1000 : 0));
}
