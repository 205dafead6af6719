// Stands in for the view of a Batch until that lands.
export default () => ({
  render({ el }: { el: HTMLElement }): void {
    el.textContent = "batch";
  },
});
