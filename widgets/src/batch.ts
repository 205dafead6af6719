// The Batch view: progress by state, pace, failures, all rows, the timeline, and buttons that cancel and retry.
import "./lib/qnb.css";
import { Bar } from "./lib/bar";
import type { Channel } from "./lib/channel";
import { arrange, columnsOf, usual, type Column } from "./lib/columns";
import { DetailPanel } from "./lib/detail";
import { make } from "./lib/dom";
import { copy } from "./lib/copy";
import { Failures } from "./lib/failures";
import { Grid } from "./lib/grid";
import { Head } from "./lib/head";
import { LiveView, entry } from "./lib/live";
import { inState, type Detail, type Texts } from "./lib/protocol";
import type { Rows } from "./lib/rows";
import { BatchStore, type Picture } from "./lib/store";
import { Timeline } from "./lib/timeline";
import { Toolbar, type Choice } from "./lib/toolbar";
import { plural } from "./lib/words";

const NARROW = 720;
/** How often rows are sorted and filtered anew while they change, in milliseconds; of very many, the more seldom. */
const ARRANGE = 300;

interface Sorting {
  sort: string;
  down: boolean;
}

type Opens = "detail" | "example";

class BatchView extends LiveView<BatchStore> {
  #cancel = make("button", "qnb-button", { type: "button" }, "Cancel");
  #retry = make("button", "qnb-button", { type: "button" }, "Retry failed");
  #code = make("button", "qnb-button", { type: "button", title: "Copy the code that gives these rows as a DataFrame" }, "Copy .df");
  #head = new Head(this.#cancel, this.#retry, this.#code);
  #bar = new Bar();
  #failures = new Failures((kind) => void this.#show("example", { kind }));
  #grid = new Grid({ sort: (id) => this.#sort(id), open: (index) => void this.#show("detail", { index }), texts: (indices) => void this.#fetch(indices) });
  #timeline = new Timeline((index) => void this.#show("detail", { index }));
  #detail = new DetailPanel(() => this.#hide());
  #again = make("div", "qnb-again");
  #choice: Choice & Sorting;
  #toolbar: Toolbar;
  #columns: Column[] = [];
  #drawn: { rows: Rows | null; version: number; at: number; key: string } = { rows: null, version: -1, at: -Infinity, key: "" };
  #order: Uint32Array | null = null;
  #opened = -1;
  #fetching = false;
  #narrow = false;
  #sizes: ResizeObserver | null = null;
  #cancelling = false;

  constructor(channel: Channel<BatchStore>) {
    super(channel, "batch", "Batch");
    const first: Choice & Sorting = { tab: "results", state: "", text: "", columns: null, sort: "", down: false };
    this.#choice = (channel.choices.get("batch") as (Choice & Sorting) | undefined) ?? first;
    channel.choices.set("batch", this.#choice);
    this.#toolbar = new Toolbar(this.#choice, (choice) => this.#choose(choice));
    this.#grid.watchHands();
    this.#cancel.addEventListener("click", () => void this.#stop());
    this.#retry.addEventListener("click", () => void this.#repeat());
    this.#code.addEventListener("click", () => void this.#copy());
    const parts = [this.#head, this.#bar, this.#failures, this.#toolbar, this.#grid, this.#timeline, this.#detail];
    this.element.append(...parts.map((part) => part.element), this.#again);
    if (typeof ResizeObserver !== "undefined") {
      this.#sizes = new ResizeObserver(([entry]) => {
        this.#narrow = entry !== undefined && entry.contentRect.width > 0 && entry.contentRect.width < NARROW;
        this.soon();
      });
      this.#sizes.observe(this.element);
    }
    const again = channel.choices.get("again");
    if (again) this.#place(again as string);
    const opened = channel.choices.get("opened") as [Opens, Record<string, unknown>] | undefined;
    if (opened) void this.#show(...opened);
  }

  override close(): void {
    this.#sizes?.disconnect();
    this.#grid.close();
    super.close();
  }

  protected draw(now: number): void {
    const { picture, rows } = this.channel.store;
    if (!picture) return;
    for (const part of [this.#head, this.#bar]) part.draw(picture, now);
    this.#failures.draw(picture);
    this.element.setAttribute("aria-label", `Batch ${picture.name}`);
    this.#cancel.hidden = picture.over;
    this.#cancel.disabled = this.#cancelling;
    this.#retry.hidden = inState(picture.counts, "failed") + inState(picture.counts, "lost") === 0;
    const empty = rows.count === 0;
    for (const part of [this.#toolbar, this.#grid, this.#timeline]) part.element.hidden = empty;
    if (!empty) this.#drawRows(picture, rows, now);
  }

  #drawRows(picture: Picture, rows: Rows, now: number): void {
    if (this.#drawn.rows !== rows) this.#columns = columnsOf(rows);
    const table = this.#choice.tab === "results";
    const elapsed = picture.over ? picture.elapsed : picture.elapsed + (now - picture.at) / 1000;
    const shown = this.#choice.columns ?? usual(this.#columns, this.#narrow);
    this.#arrange(rows, elapsed, picture.over, now);
    this.#grid.element.hidden = !table;
    this.#timeline.element.hidden = table;
    if (table) {
      const { sort, down } = this.#choice;
      const columns = this.#columns.filter(({ id }) => shown.has(id));
      this.#grid.draw(rows, columns, this.#order, { elapsed, follow: !picture.over, sort, down, opened: this.#opened });
    } else {
      this.#timeline.draw(rows, elapsed, picture.over, now);
    }
    this.#toolbar.draw(this.#choice, this.#columns, shown, picture.counts, this.#grid.length, rows.count);
  }

  #arrange(rows: Rows, elapsed: number, over: boolean, now: number): void {
    const { state, text, sort, down } = this.#choice;
    const key = JSON.stringify([state, text, sort, down]);
    const drawn = this.#drawn;
    const same = key === drawn.key && rows === drawn.rows;
    const patience = rows.count > 20_000 ? 5 * ARRANGE : ARRANGE;
    if (same && (rows.version === drawn.version || (!over && now - drawn.at < patience))) return;
    this.#order = arrange(rows, this.#columns, { state, text, sort, down }, elapsed);
    this.#drawn = { rows, version: rows.version, at: now, key };
  }

  #choose(choice: Partial<Choice & Sorting>): void {
    Object.assign(this.#choice, choice);
    this.soon();
  }

  #sort(id: string): void {
    const { sort, down } = this.#choice;
    this.#grid.hold();
    // up, down, and back to the order of the calls
    if (sort !== id) this.#choose({ sort: id, down: false });
    else if (!down) this.#choose({ down: true });
    else this.#choose({ sort: "", down: false });
  }

  /** The view that takes the place of this one, as when its output becomes HTML, opens the same. */
  async #show(what: Opens, argument: Record<string, unknown>): Promise<void> {
    this.channel.choices.set("opened", [what, argument]);
    const detail = (await this.request(what, argument)) as Detail | undefined;
    if (!detail) return;
    this.#opened = detail.index;
    this.#detail.show(detail);
    this.soon();
  }

  #hide(): void {
    this.channel.choices.delete("opened");
    this.#opened = -1;
    this.#detail.hide();
    this.#grid.element.focus({ preventScroll: true });
    this.soon();
  }

  async #fetch(indices: number[]): Promise<void> {
    if (this.#fetching) return;
    this.#fetching = true;
    const answer = await this.channel.ask("texts", { indices });
    this.#fetching = false;
    if (!answer.ok) return;
    this.channel.store.rows.text(answer.value as Texts[]);
    this.soon();
  }

  async #stop(): Promise<void> {
    this.#cancelling = true;
    await this.request("cancel", {}, "Cancelling: what has not started will not run.");
    this.#cancelling = false;
    this.soon();
  }

  async #repeat(): Promise<void> {
    this.#retry.disabled = true;
    const again = (await this.request("retry", {}, "Trying again what failed …")) as { key: string; run: string; calls: number } | undefined;
    this.#retry.disabled = false;
    if (!again) return;
    this.channel.choices.set("again", again.key);
    this.#place(again.key);
    this.say(`${plural(again.calls, "call")} again, as run ${again.run}.`);
  }

  /** Where the batch of the second try is shown: its model finds the mark. */
  #place(key: string): void {
    this.#again.replaceChildren(make("div", `qnb-live qnb-live-${key}`));
  }

  async #copy(): Promise<void> {
    const run = this.channel.store.picture?.run ?? "";
    const code = `session.attach(${JSON.stringify(run)}).df`;
    this.say((await copy(code)) ? `Copied: ${code}` : code, 10_000);
  }
}

export default entry(() => new BatchStore(), (channel) => new BatchView(channel));
