// Where views stand. A view that a widget manager made stands in its element; all others stand in elements that bear
// the mark of their model: the HTML of an output, or a place in another view.

export interface Mounted {
  readonly element: HTMLElement;
  close(): void;
}

/** An output that is only scrolled away is kept by Jupyter, out of the page; after so long it counts as gone. */
const DETACHED = 600_000;
const OUTPUT = ".jp-OutputArea";

/** What of a view is lost when its output is taken out of the page to be brought up to date, which no event tells of in
 * time: which part has the focus, and how far parts are scrolled. */
class Kept {
  #root: HTMLElement;
  #focus: HTMLElement | null = null;
  #scrolled = new Map<Element, [number, number]>();

  constructor(root: HTMLElement) {
    this.#root = root;
    root.addEventListener("focusin", (event) => (this.#focus = event.target as HTMLElement));
    root.addEventListener("focusout", (event) => {
      const left = event.target as HTMLElement;
      // some browsers say this of a part that leaves the page, too: by then it is back, with the focus
      setTimeout(() => {
        if (this.#focus === left && left.isConnected && document.activeElement !== left) this.#focus = null;
      });
    });
    const scrolled = ({ target }: Event): void => {
      const { scrollTop, scrollLeft } = target as Element;
      this.#scrolled.set(target as Element, [scrollTop, scrollLeft]);
    };
    root.addEventListener("scroll", scrolled, { capture: true, passive: true });
  }

  restore(): void {
    for (const [part, [top, left]] of this.#scrolled) {
      if (this.#root.contains(part)) part.scrollTo(left, top);
      else this.#scrolled.delete(part);
    }
    const free = !document.activeElement || document.activeElement === document.body;
    if (free && this.#focus && this.#root.contains(this.#focus)) this.#focus.focus({ preventScroll: true });
  }
}

interface Held {
  view: Mounted;
  kept: Kept;
  since: number;
}

function hold(view: Mounted): Held {
  return { view, kept: new Kept(view.element), since: Infinity };
}

/** Keep a view in each element with the mark. Returns what ends that, and the views. */
export function mount(key: string, make: () => Mounted): () => void {
  const marked = document.getElementsByClassName(`qnb-live-${key}`);
  const views = new Map<Element, Held>();

  const scan = (): void => {
    const free: Held[] = [];
    for (const [place, held] of views) {
      if (place.isConnected) held.since = Infinity;
      else if (!place.closest(OUTPUT) || performance.now() - held.since > DETACHED) {
        views.delete(place);
        free.push(held);
      } else held.since = Math.min(held.since, performance.now());
    }
    for (const place of [...marked]) if (!views.has(place)) views.set(place, put(place, free.pop() ?? hold(make())));
    for (const { view } of free) view.close();
  };
  const observer = new MutationObserver(scan);
  observer.observe(document.body, { childList: true, subtree: true });
  scan();
  return () => {
    observer.disconnect();
    for (const [place, { view }] of views) {
      view.close();
      view.element.remove();
      for (const child of place.children) (child as HTMLElement).hidden = false;
    }
    views.clear();
  };
}

/** Put a view into a place, in front of what stands there for readers without a kernel. It may come from another place,
 * whose output was brought up to date: what had the focus, and what was scrolled, stays so. */
function put(place: Element, held: Held): Held {
  for (const child of place.children) (child as HTMLElement).hidden = true;
  place.append(held.view.element);
  held.since = Infinity;
  held.kept.restore();
  return held;
}
