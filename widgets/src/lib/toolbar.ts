import type { Column } from "./columns";
import { make, setAttribute, setText } from "./dom";
import { SHOWN, inState } from "./protocol";
import { count } from "./words";

export type Tab = "results" | "timeline";

export interface Choice {
  tab: Tab;
  state: string;
  text: string;
  /** The ids of the columns that are shown; null for the usual ones. */
  columns: Set<string> | null;
}

/** Above table and timeline: which of them, which rows, which columns. */
export class Toolbar {
  readonly element: HTMLElement;
  #tabs: HTMLButtonElement[];
  #filter: HTMLInputElement;
  #state: HTMLSelectElement;
  #columns = make("details", "qnb-columns");
  #list = make("div", "qnb-menu", { role: "group", "aria-label": "Columns" });
  #found = make("span", "qnb-dim", { role: "status" });
  #laidOut = "";
  #changed: (choice: Partial<Choice>) => void;

  constructor(choice: Choice, changed: (choice: Partial<Choice>) => void) {
    this.#changed = changed;
    this.#tabs = (["results", "timeline"] as const).map((tab) => {
      const button = make("button", "qnb-tab", { type: "button", "aria-pressed": "false" }, tab === "results" ? "Results" : "Timeline");
      button.addEventListener("click", () => changed({ tab }));
      return button;
    });
    this.#filter = make("input", "qnb-input", { type: "search", placeholder: "Filter", "aria-label": "Filter rows by text" });
    this.#filter.value = choice.text;
    let timer: ReturnType<typeof setTimeout> | undefined;
    this.#filter.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => changed({ text: this.#filter.value.trim().toLowerCase() }), 150);
    });
    this.#filter.addEventListener("keydown", (event) => event.stopPropagation());
    this.#state = make("select", "qnb-input", { "aria-label": "Rows in this state" });
    this.#state.addEventListener("change", () => changed({ state: this.#state.value }));
    this.#columns.append(make("summary", "qnb-button", {}, "Columns"), this.#list);
    this.#columns.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#columns.open = false;
      event.stopPropagation();
    });
    const right = make("span", "qnb-right", {}, this.#found, this.#filter, this.#state, this.#columns);
    const tabs = make("span", "qnb-tabs", { role: "group", "aria-label": "Show" }, ...this.#tabs);
    this.element = make("div", "qnb-tools", {}, tabs, right);
  }

  draw(choice: Choice, columns: Column[], shown: Set<string>, counts: number[], found: number, total: number): void {
    this.#tabs.forEach((button, place) => setAttribute(button, "aria-pressed", `${(place === 0) === (choice.tab === "results")}`));
    const table = choice.tab === "results";
    const few = total <= 8;
    this.#filter.hidden = this.#state.hidden = !table || few;
    this.#columns.hidden = !table;
    setText(this.#found, table && found !== total ? `${count(found)} of ${count(total)}` : "");
    this.#states(choice.state, counts);
    const key = columns.map(({ id }) => id).join("\n");
    if (key === this.#laidOut) return;
    this.#laidOut = key;
    const boxes = columns.map(({ id, title }) => {
      const box = make("input", "", { type: "checkbox" });
      box.checked = shown.has(id);
      box.addEventListener("change", () => {
        const all = [...this.#list.querySelectorAll("input")];
        this.#changed({ columns: new Set(columns.filter((_, place) => all[place]!.checked).map((column) => column.id)) });
      });
      return make("label", "", {}, box, title);
    });
    this.#list.replaceChildren(...boxes);
  }

  #states(chosen: string, counts: number[]): void {
    const present = SHOWN.filter((state) => inState(counts, state) > 0 || state === chosen);
    const words = ["", ...present];
    if (this.#state.options.length === words.length && words.every((word, place) => this.#state.options[place]!.value === word)) return;
    this.#state.replaceChildren(...words.map((word) => make("option", "", { value: word }, word || "all states")));
    this.#state.value = chosen;
  }
}
