const SETTLE = 250;

/** Tell whether an element can be seen: scrolled into view, in a tab that is in front. Returns what ends it. */
export function watchVisibility(element: Element, tell: (visible: boolean) => void): () => void {
  let within = true;
  let told = true;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const judge = (): void => {
    clearTimeout(timer);
    // scrolling past is no news
    timer = setTimeout(() => {
      const visible = within && document.visibilityState !== "hidden";
      if (visible === told) return;
      told = visible;
      tell(visible);
    }, SETTLE);
  };
  const observer =
    typeof IntersectionObserver === "undefined"
      ? null
      : new IntersectionObserver((entries) => {
          within = entries[entries.length - 1]!.isIntersecting;
          judge();
        });
  observer?.observe(element);
  document.addEventListener("visibilitychange", judge);
  return () => {
    clearTimeout(timer);
    observer?.disconnect();
    document.removeEventListener("visibilitychange", judge);
  };
}
