// Where views stand. A view that a widget manager made stands in its element; all others stand in elements that bear
// the mark of their model: the HTML of an output, or a place in another view.

export interface Mounted {
  readonly element: HTMLElement;
  close(): void;
}

/** An output that is only scrolled away is kept by Jupyter, out of the page; after so long it counts as gone. */
const DETACHED = 600_000;
const OUTPUT = ".jp-OutputArea";

/** Keep a view in each element with the mark. Returns what ends that, and the views. */
export function mount(key: string, make: () => Mounted): () => void {
  const marked = document.getElementsByClassName(`qnb-live-${key}`);
  const views = new Map<Element, { view: Mounted; since: number }>();

  const scan = (): void => {
    const free: Mounted[] = [];
    for (const [place, held] of views) {
      if (place.isConnected) held.since = Infinity;
      else if (!place.closest(OUTPUT) || performance.now() - held.since > DETACHED) {
        views.delete(place);
        free.push(held.view);
      } else held.since = Math.min(held.since, performance.now());
    }
    for (const place of [...marked]) if (!views.has(place)) views.set(place, { view: put(place, free.pop() ?? make()), since: Infinity });
    for (const view of free) view.close();
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
function put(place: Element, view: Mounted): Mounted {
  const active = view.element.contains(document.activeElement) ? (document.activeElement as HTMLElement) : null;
  const scrolled = [...view.element.querySelectorAll("*")].filter((part) => part.scrollTop || part.scrollLeft);
  const at = scrolled.map(({ scrollTop, scrollLeft }) => [scrollTop, scrollLeft] as const);
  for (const child of place.children) (child as HTMLElement).hidden = true;
  place.append(view.element);
  scrolled.forEach((part, number) => part.scrollTo(at[number]![1], at[number]![0]));
  active?.focus({ preventScroll: true });
  return view;
}
