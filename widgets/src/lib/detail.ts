import { make } from "./dom";
import type { Detail } from "./protocol";
import { duration } from "./words";

/** Everything of one call, below the table. */
export class DetailPanel {
  readonly element = make("section", "qnb-detail", { "aria-label": "One call", tabindex: "-1" });

  constructor(close: () => void) {
    this.element.hidden = true;
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      close();
    });
    this.#close = close;
  }

  #close: () => void;

  show(detail: Detail): void {
    const head = make("div", "qnb-head", {}, make("i", `qnb-dot qnb-${detail.state}`), make("strong", "", {}, `call ${detail.index}`));
    const close = make("button", "qnb-button", { type: "button", "aria-label": "Close this call" }, "×");
    close.addEventListener("click", () => this.#close());
    head.append(make("span", "", {}, facts(detail)), make("span", "qnb-right", {}, close));
    const parts: Node[] = [head];
    if (detail.arguments.length) parts.push(table(detail.arguments));
    if (detail.result !== null) parts.push(block("result", detail.result));
    if (detail.traceback) parts.push(block("traceback", detail.traceback, "qnb-error"));
    else if (detail.error) parts.push(block("error", detail.error, "qnb-error"));
    if (detail.output) parts.push(block("output", detail.output));
    this.element.replaceChildren(...parts);
    this.element.hidden = false;
  }

  hide(): void {
    this.element.hidden = true;
    this.element.replaceChildren();
  }
}

function facts({ state, attempts, worker, times: [queued, started, finished], id }: Detail): string {
  const words: string[] = [state];
  if (attempts > 1) words.push(`try ${attempts}`);
  if (worker) words.push(`on ${worker}`);
  if (queued && started) words.push(`waited ${duration(Math.max(0, started - queued))}`);
  if (started && finished) words.push(`ran ${duration(Math.max(0, finished - started))}`);
  if (started) words.push(`from ${new Date(started * 1000).toLocaleTimeString()}`);
  return [...words, id].join(" · ");
}

function table(pairs: [string, string][]): HTMLElement {
  const lines = pairs.map(([name, value]) => [make("dt", "", {}, name), make("dd", "", {}, value)]);
  return make("dl", "", { "aria-label": "Arguments" }, ...lines.flat());
}

function block(title: string, text: string, className = ""): HTMLElement {
  const label = { tabindex: "0", role: "region", "aria-label": title };
  return make("div", "qnb-block", {}, make("h4", "", {}, title), make("pre", className, label, text));
}
