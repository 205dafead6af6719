// The Brokers view: brokers against their features, and a button that measures them on the live server.
import "./lib/qnb.css";
import type { Channel } from "./lib/channel";
import { make, setAttribute, setText } from "./lib/dom";
import { LiveView, entry } from "./lib/live";
import { button } from "./lib/small";
import { StateStore } from "./lib/store";
import { duration } from "./lib/words";

type Support = "native" | "built" | "none";

export interface Broker {
  scheme: string;
  url: string | null;
  support: Record<string, Support>;
  /** [name, as people read it] */
  limits: [string, string][];
  client: string;
  installed: boolean;
  reachable: boolean | null;
  server: string;
  seen_on: string;
  /** [whether it worked, null where it was not tried; seconds; what was seen] */
  measured: Record<string, [boolean | null, number, string]>;
  probe: boolean;
  probing: boolean;
}

export interface BrokersState {
  features: string[];
  brokers: Broker[];
}

/** A limit as it is called in Python, and in words. */
const LIMITS: Record<string, string> = {
  message_bytes: "a message, at most", batch_messages: "a batch, at most", delay_seconds: "a delay, at most",
  lease_min_seconds: "a lease, at least", lease_seconds: "a lease, at most", ordering: "order kept by",
};
const MARKS: Record<Support, string> = { native: "●", built: "◐", none: "○" };

class BrokersView extends LiveView<StateStore<BrokersState>> {
  #table = make("table", "qnb-matrix");
  #seen = make("div", "qnb-seen", { "aria-live": "polite" });
  #built = "";

  constructor(channel: Channel<StateStore<BrokersState>>) {
    super(channel, "brokers", "Brokers and their features");
    const words = { native: "the server does it", built: "qnb does it with what the server has", none: "not there" };
    const legend = Object.entries(words).map(([support, text]) => {
      return make("li", "", {}, make("b", `qnb-mark qnb-${support}`, {}, `${MARKS[support as Support]} ${support}`), make("span", "", {}, text));
    });
    const label = { role: "region", "aria-label": "Features", tabindex: "0" };
    this.element.append(make("ul", "qnb-legend", {}, ...legend), make("div", "qnb-table", label, this.#table), this.#seen);
  }

  protected draw(): void {
    const { state } = this.channel.store;
    if (!state) return;
    const key = JSON.stringify([state.features, state.brokers.map(({ scheme, url }) => [scheme, url])]);
    if (key !== this.#built) this.#build(state, key);
    const lines = [...this.#table.tBodies[0]!.children];
    state.brokers.forEach((broker, column) => {
      const cell = (line: number): HTMLElement => lines[line]!.children[column + 1] as HTMLElement;
      state.features.forEach((feature, line) => this.#feature(cell(line), broker, feature));
      const after = state.features.length;
      broker.limits.forEach(([, text], line) => setText(cell(after + line), text));
      const rest = after + broker.limits.length;
      this.#client(cell(rest), broker);
      this.#server(cell(rest + 1), broker);
      this.#button(cell(rest + 2).firstElementChild as HTMLButtonElement, broker);
    });
    this.#measured(state);
  }

  #build(state: BrokersState, key: string): void {
    this.#built = key;
    const heads = state.brokers.map(({ scheme }) => make("th", "", { scope: "col" }, scheme));
    const words = (name: string): string => name.replaceAll("_", " ");
    const line = (name: string, inside: (broker: Broker, place: number) => Node[] = () => []): HTMLElement => {
      return make("tr", "", {}, make("th", "", { scope: "row" }, name), ...state.brokers.map((broker, place) => make("td", "", {}, ...inside(broker, place))));
    };
    const probe = (broker: Broker, place: number): Node[] => [
      button("probe", `Probe ${broker.scheme}: try every feature on the server`, () => void this.#probe(place)),
    ];
    const body = make("tbody", "", {},
      ...state.features.map((feature) => line(words(feature))),
      ...(state.brokers[0]?.limits ?? []).map(([name]) => line(LIMITS[name] ?? words(name))),
      line("client"), line("server"), line("measure", probe));
    body.children[state.features.length]?.classList.add("qnb-part");
    body.children[body.children.length - 3]?.classList.add("qnb-part");
    this.#table.replaceChildren(make("thead", "", {}, make("tr", "", {}, make("th", "", { scope: "col" }, "feature"), ...heads)), body);
  }

  #feature(cell: HTMLElement, broker: Broker, feature: string): void {
    const support = broker.support[feature] ?? "none";
    const seen = broker.measured[feature];
    const works = seen?.[0] == null ? "" : seen[0] ? " ✓" : " ✗ fails";
    setText(cell, `${MARKS[support]} ${support}${works}`);
    setAttribute(cell, "class", `qnb-mark qnb-${support}${seen?.[0] === false ? " qnb-error" : ""}`);
    setAttribute(cell, "title", seen ? seen[2] : null);
  }

  #client(cell: HTMLElement, { installed, client }: Broker): void {
    setText(cell, installed ? "✓ installed" : "not installed");
    setAttribute(cell, "title", client);
  }

  #server(cell: HTMLElement, { reachable, server, url }: Broker): void {
    setText(cell, reachable === null ? "not asked" : reachable ? "✓ reachable" : "✗ not reachable");
    setAttribute(cell, "title", [url, server].filter(Boolean).join(": "));
    setAttribute(cell, "class", reachable === false ? "qnb-error" : null);
  }

  #button(made: HTMLButtonElement, { scheme, probe, probing, installed, client }: Broker): void {
    made.disabled = !probe || probing;
    setText(made, probing ? "probing …" : "probe");
    const why = installed ? `no server is named: qnb.brokers("${scheme}://host")` : client;
    setAttribute(made, "title", probe ? `try every feature on the server` : why);
  }

  /** What the probes saw, in words. */
  #measured({ brokers, features }: BrokersState): void {
    const probed = brokers.filter(({ measured }) => Object.keys(measured).length);
    const key = JSON.stringify(probed.map(({ scheme, measured }) => [scheme, measured]));
    this.#seen.hidden = probed.length === 0;
    if (this.#seen.dataset.key === key) return;
    this.#seen.dataset.key = key;
    this.#seen.replaceChildren(...probed.map(({ scheme, url, measured }) => {
      const lines = features.filter((feature) => measured[feature]).map((feature) => {
        const [worked, seconds, said] = measured[feature]!;
        const mark = worked === null ? "– not tried" : worked ? "✓ works" : "✗ fails";
        return make("tr", worked === false ? "qnb-error" : "", {},
          ...[feature.replaceAll("_", " "), mark, said, worked === null ? "" : duration(seconds)].map((text) => make("td", "", {}, text)));
      });
      return make("details", "", { open: "" }, make("summary", "", {}, `What was seen on ${url ?? scheme}`), make("table", "", {}, make("tbody", "", {}, ...lines)));
    }));
  }

  async #probe(place: number): Promise<void> {
    const said = await this.request("probe", { place }, "Measuring, for ten seconds at most …");
    if (said) this.say(String(said), 20_000);
  }
}

export default entry(() => new StateStore<BrokersState>(), (channel) => new BrokersView(channel));
