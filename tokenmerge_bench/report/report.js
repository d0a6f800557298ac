// What a report does beyond being read: tables that sort and filter, and one live chart in place of the still ones.
// Everything it needs is in the page; without it the page is whole.
"use strict";
(() => {
  document.documentElement.classList.add("script");
  const element = (id) => document.getElementById(id);

  // --- tables ---------------------------------------------------------------------------------------------------------

  // The number that a cell begins with, whatever marks stand around it; none sorts last.
  const numberOf = (text) => Number.parseFloat(text.replace(/^[^\d.+-]+/, "").replaceAll(",", ""));

  const compareCells = (a, b, numeric) => {
    if (!numeric) return a.localeCompare(b, "en", { numeric: true });
    const [x, y] = [numberOf(a), numberOf(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : x - y;
  };

  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

  const makeSortable = (table) => {
    const body = table.tBodies[0];
    const given = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];
    const sortBy = (heading) => {
      const order = NEXT[heading.ariaSort];
      const numeric = heading.classList.contains("number");
      const cell = (row) => row.cells[heading.cellIndex].textContent.trim();
      for (const other of headings) other.ariaSort = "none";
      heading.ariaSort = order;
      const rows = [...given];
      if (order !== "none") {
        const turned = order === "ascending" ? 1 : -1;
        const blank = (row) => numeric && Number.isNaN(numberOf(cell(row)));
        rows.sort((a, b) => blank(a) - blank(b) || turned * compareCells(cell(a), cell(b), numeric));
      }
      body.append(...rows);
    };
    for (const heading of headings) {
      const button = document.createElement("button");
      button.type = "button";
      heading.dataset.heading = heading.textContent.trim(); // on paper: a table's later pages lack what is in a button
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sortBy(heading));
      heading.append(button);
      heading.ariaSort = "none";
    }
  };

  const makeFilterable = (field) => {
    const rows = [...element(`table-${field.dataset.filters}`).tBodies[0].rows];
    const count = document.querySelector(`[data-counts="${field.dataset.filters}"]`);
    const filter = () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of rows) {
        const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    };
    field.addEventListener("input", filter);
    filter();
  };

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll("[data-filters]").forEach(makeFilterable);

  // --- the chart ------------------------------------------------------------------------------------------------------

  const charts = JSON.parse(element("chart-data").textContent);
  const boxes = [...document.querySelectorAll('input[name="method"]')];
  // Expressions are interpreted, not compiled, so that the page can forbid the making of code.
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true };
  const AXES = { x: "grid_x", y: "grid_top1" };
  let view = null;
  let drawing = 0;

  const shown = () => boxes.filter((box) => box.checked).map((box) => box.value);
  const chosen = () => charts.find((chart) => chart.model === element("model").value && chart.axis === element("axis").value);

  // The chosen chart as it is to be drawn now, with a legend (an empty one would have no size) or without.
  const specification = (legend) => {
    const spec = structuredClone(chosen().spec);
    spec.params.find((param) => param.name === "shown").value = shown();
    for (const { encoding } of spec.layer) {
      for (const channel of [encoding.color, encoding.shape]) {
        if (channel?.legend) channel.legend = legend && shown().length ? { ...channel.legend, values: shown() } : null;
      }
    }
    return spec;
  };

  const draw = async () => {
    const turn = ++drawing;
    const chart = chosen();
    element("chart").ariaLabel = chart.alt;
    element("chart-caption").textContent = chart.caption;
    const made = await vegaEmbed("#chart > div", specification(false), options); // which gives it a role of its own
    if (turn === drawing) view = made.view;
    else made.finalize(); // another chart was chosen meanwhile
  };

  const listAxes = () => {
    const axes = charts.filter((chart) => chart.model === element("model").value).map((chart) => chart.axis);
    const kept = element("axis").value;
    element("axis").replaceChildren(...axes.map((axis) => new Option(axis, axis, false, axis === kept)));
  };

  const update = () => view?.signal("shown", shown()).runAsync();

  // Moves and scales what is seen, by fractions of it.
  const look = (right, up, scale) => {
    for (const [axis, by] of [["x", right], ["y", up]]) {
      const [low, high] = view.scale(axis).domain();
      const [middle, half] = [(low + high) / 2 + by * (high - low), ((high - low) / 2) * scale];
      view.signal(AXES[axis], [middle - half, middle + half]);
    }
    view.runAsync();
  };
  const lookAtAll = () => {
    for (const signal of Object.values(AXES)) view.signal(signal, null);
    view.runAsync();
  };

  // The chart as it is seen, with a legend and on white, as a file.
  const save = async (kind) => {
    const place = document.createElement("div");
    const spec = { ...specification(true), width: 720, background: "white" };
    const made = await vegaEmbed(place, spec, options);
    for (const signal of Object.values(AXES)) made.view.signal(signal, view.signal(signal));
    await made.view.runAsync();
    const link = document.createElement("a");
    link.href = await made.view.toImageURL(kind, 2);
    link.download = `accuracy ${chosen().model} ${chosen().axis}.${kind}`.replace(/[^\w.]+/g, "-");
    link.click();
    made.finalize();
  };

  const KEYS = {
    ArrowLeft: () => look(-0.1, 0, 1),
    ArrowRight: () => look(0.1, 0, 1),
    ArrowUp: () => look(0, 0.1, 1),
    ArrowDown: () => look(0, -0.1, 1),
    "+": () => look(0, 0, 0.8),
    "-": () => look(0, 0, 1.25),
    0: lookAtAll,
  };

  const tick = (checked) => {
    for (const box of boxes) box.checked = checked;
    update();
  };

  element("model").addEventListener("change", () => { listAxes(); draw(); });
  element("axis").addEventListener("change", draw);
  for (const box of boxes) box.addEventListener("change", update);
  element("all").addEventListener("click", () => tick(true));
  element("none").addEventListener("click", () => tick(false));
  element("zoom-in").addEventListener("click", KEYS["+"]);
  element("zoom-out").addEventListener("click", KEYS["-"]);
  element("zoom-reset").addEventListener("click", lookAtAll);
  element("save-png").addEventListener("click", () => save("png"));
  element("save-svg").addEventListener("click", () => save("svg"));
  element("chart").addEventListener("keydown", (event) => {
    const act = KEYS[event.key];
    if (act && view) { event.preventDefault(); act(); }
  });
  listAxes();
  draw();
})();
