import { make, setText } from "./dom";
import { lanesOf, lastBefore, step, type Lane } from "./lanes";
import { FAILED, LOST } from "./protocol";
import type { Rows } from "./rows";
import { count, duration, plural } from "./words";

const COLOURS = ["#8884", "#8886", "#3d87e0", "#e0962e", "#2f9e63", "#d64545", "#8b8f94", "#9c4bb8"];
const NAME = 16;
const AXIS = 20;
const HIGHEST = 300;

/** Tasks by worker over time, on a canvas: drag or arrow keys pan, buttons, + and - or ctrl and wheel zoom. */
export class Timeline {
  readonly element: HTMLElement;
  #canvas = make("canvas", "", { tabindex: "0", role: "img" });
  #tip = make("div", "qnb-tip", { role: "status" });
  #lanes: Lane[] = [];
  #rows: Rows | null = null;
  #elapsed = 1;
  #from = 0;
  #to = 1;
  #zoomed = false;
  #seen: { version: number; cost: number; at: number } = { version: -1, cost: 0, at: -Infinity };
  #open: (index: number) => void;
  #drag: { x: number; from: number; to: number; moved: boolean } | null = null;

  constructor(open: (index: number) => void) {
    this.#open = open;
    const button = (text: string, label: string, act: () => void): HTMLElement => {
      const made = make("button", "qnb-button", { type: "button", "aria-label": label, title: label }, text);
      made.addEventListener("click", act);
      return made;
    };
    const tools = make("div", "qnb-zoom", {},
      button("+", "Zoom in", () => this.#zoom(0.5)),
      button("−", "Zoom out", () => this.#zoom(2)),
      button("all", "Show all of it", () => this.#all()));
    this.element = make("div", "qnb-timeline", {}, tools, this.#canvas, this.#tip);
    this.#listen();
  }

  draw(rows: Rows, elapsed: number, over: boolean, now: number): void {
    this.#rows = rows;
    const last = over ? rows.finished.reduce((most, end) => (end > most ? end : most), 0) : elapsed;
    this.#elapsed = Math.max(last, 1e-3);
    if (!this.#zoomed) [this.#from, this.#to] = [0, this.#elapsed];
    const { version, cost, at } = this.#seen;
    if (rows.version !== version && (over || now - at > Math.max(250, 20 * cost))) {
      const begun = performance.now();
      this.#lanes = lanesOf(rows);
      this.#seen = { version: rows.version, cost: performance.now() - begun, at: now };
    }
    const workers = new Set(this.#lanes.map(({ worker }) => worker)).size;
    const calls = this.#lanes.reduce((sum, lane) => sum + lane.calls.length, 0);
    const words = `Timeline: ${plural(calls, "call")} on ${plural(workers, "worker")} in ${duration(this.#elapsed)}. Plus and minus zoom, arrows move.`;
    this.#canvas.setAttribute("aria-label", words);
    this.#paint();
  }

  #paint(): void {
    const rows = this.#rows;
    const width = this.element.clientWidth;
    if (!rows || !width) return;
    const { laneHeight, height } = this.#size();
    const ratio = window.devicePixelRatio || 1;
    const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.#canvas.width !== wide || this.#canvas.height !== high) {
      Object.assign(this.#canvas, { width: wide, height: high });
      this.#canvas.style.height = `${height}px`;
    }
    const context = this.#canvas.getContext("2d");
    if (!context) return;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(this.element);
    context.font = `11px ${style.fontFamily}`;
    context.fillStyle = style.color;
    this.#axis(context, width, height);
    let y = 0;
    this.#lanes.forEach((lane, place) => {
      if (lane.worker !== this.#lanes[place - 1]?.worker) {
        context.fillStyle = style.color;
        context.fillText(rows.workerNames[lane.worker] || "not told", 2, y + 12);
        y += NAME;
      }
      this.#lane(context, lane, rows, y, Math.max(1, laneHeight - 1), width);
      y += laneHeight;
    });
  }

  #size(): { laneHeight: number; height: number } {
    const names = new Set(this.#lanes.map(({ worker }) => worker)).size * NAME;
    const number = Math.max(1, this.#lanes.length);
    const laneHeight = Math.max(3, Math.min(18, Math.floor((HIGHEST - names) / number)));
    return { laneHeight, height: names + number * laneHeight + AXIS };
  }

  #x(time: number, width: number): number {
    return ((time - this.#from) / (this.#to - this.#from)) * width;
  }

  /** Calls that fall onto the pixel of the one before are not drawn, but for those that failed. */
  #lane(context: CanvasRenderingContext2D, { calls }: Lane, rows: Rows, y: number, high: number, width: number): void {
    let reached = -1;
    const bad: number[] = [];
    for (let place = Math.max(0, lastBefore(calls, rows.started, this.#from)); place < calls.length; place++) {
      const index = calls[place]!;
      const left = Math.max(0, this.#x(rows.started[index]!, width));
      if (left > width) break;
      const end = rows.finished[index]!;
      const right = Math.min(width, this.#x(Number.isNaN(end) ? this.#elapsed : end, width));
      const state = rows.states[index]!;
      if (state === FAILED || state === LOST) bad.push(left, right, state);
      else if (right > reached + 0.5) {
        context.fillStyle = COLOURS[state]!;
        const gap = right - left > 4 ? 1 : 0;
        context.fillRect(left, y, Math.max(1, right - left - gap), high);
        reached = Math.max(right, left + 1);
      }
    }
    for (let at = 0; at < bad.length; at += 3) {
      context.fillStyle = COLOURS[bad[at + 2]!]!;
      context.fillRect(bad[at]!, y, Math.max(2, bad[at + 1]! - bad[at]! - 1), high);
    }
  }

  #axis(context: CanvasRenderingContext2D, width: number, height: number): void {
    const every = step(this.#to - this.#from, Math.max(2, width / 110));
    const line = height - AXIS;
    for (let time = Math.ceil(this.#from / every) * every; time <= this.#to + 1e-9; time += every) {
      const x = this.#x(time, width);
      context.globalAlpha = 0.15;
      context.fillRect(Math.min(x, width - 1), 0, 1, line + 4);
      context.globalAlpha = 1;
      const text = time < 1e-9 ? "0" : duration(time);
      const half = context.measureText(text).width / 2;
      context.fillText(text, Math.min(Math.max(0, x - half), width - 2 * half), height - 5);
    }
  }

  #at(event: MouseEvent): { index: number; x: number; y: number } | null {
    const rows = this.#rows;
    const box = this.#canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const time = this.#from + (x / box.width) * (this.#to - this.#from);
    const { laneHeight } = this.#size();
    let top = 0;
    for (const [place, lane] of this.#lanes.entries()) {
      if (lane.worker !== this.#lanes[place - 1]?.worker) top += NAME;
      if (y >= top && y < top + laneHeight && rows) {
        const slack = ((this.#to - this.#from) / box.width) * 2;
        const index = lane.calls[lastBefore(lane.calls, rows.started, time + slack)];
        const end = index === undefined ? -1 : (Number.isNaN(rows.finished[index]!) ? this.#elapsed : rows.finished[index]!);
        return index !== undefined && time <= end + slack ? { index, x, y } : null;
      }
      top += laneHeight;
    }
    return null;
  }

  #hover(event: MouseEvent): void {
    const found = this.#drag ? null : this.#at(event);
    this.#tip.hidden = !found;
    if (!found || !this.#rows) return;
    const { index } = found;
    const time = this.#rows.runtime(index, this.#elapsed);
    setText(this.#tip, `call ${count(index)} · ${this.#rows.state(index)} · ${duration(time)} · ${this.#rows.result(index)}`);
    const left = Math.min(found.x + 12, this.element.clientWidth - this.#tip.offsetWidth - 4);
    this.#tip.style.transform = `translate(${Math.max(0, left)}px, ${found.y + 16}px)`;
  }

  #listen(): void {
    const canvas = this.#canvas;
    this.#tip.hidden = true;
    canvas.addEventListener("pointerdown", (event) => {
      this.#drag = { x: event.clientX, from: this.#from, to: this.#to, moved: false };
      canvas.setPointerCapture?.(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const drag = this.#drag;
      if (drag && Math.abs(event.clientX - drag.x) > 3) drag.moved = true;
      if (drag?.moved) {
        const shift = ((drag.x - event.clientX) / canvas.clientWidth) * (drag.to - drag.from);
        this.#show(drag.from + shift, drag.to + shift);
      }
      this.#hover(event);
    });
    canvas.addEventListener("pointerup", (event) => {
      const found = this.#drag?.moved ? null : this.#at(event);
      this.#drag = null;
      if (found) this.#open(found.index);
    });
    canvas.addEventListener("pointerleave", () => (this.#tip.hidden = true));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      this.#zoom(event.deltaY > 0 ? 1.25 : 0.8, (event.clientX - box.left) / box.width);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const quarter = (this.#to - this.#from) / 4;
      if (event.key === "+" || event.key === "=") this.#zoom(0.5);
      else if (event.key === "-") this.#zoom(2);
      else if (event.key === "0" || event.key === "Home") this.#all();
      else if (event.key === "ArrowLeft") this.#show(this.#from - quarter, this.#to - quarter);
      else if (event.key === "ArrowRight") this.#show(this.#from + quarter, this.#to + quarter);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  #zoom(factor: number, around = 0.5): void {
    const middle = this.#from + around * (this.#to - this.#from);
    const span = Math.max(1e-4, (this.#to - this.#from) * factor);
    if (span >= this.#elapsed) this.#all();
    else this.#show(middle - around * span, middle + (1 - around) * span);
  }

  #all(): void {
    this.#zoomed = false;
    [this.#from, this.#to] = [0, this.#elapsed];
    this.#paint();
  }

  #show(from: number, to: number): void {
    const span = to - from;
    this.#from = Math.min(Math.max(0, from), Math.max(0, this.#elapsed - span));
    this.#to = this.#from + span;
    this.#zoomed = true;
    this.#paint();
  }
}
