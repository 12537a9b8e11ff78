
// ---- the Pareto plot ----
const plot = byId("plot");
const tooltip = byId("tooltip");
const svg = element("svg", { role: "img", "aria-labelledby": "plot-title plot-text" });
plot.insertBefore(svg, tooltip);
let zoomed = false;
let placed = [];
let active = null;
let pinned = false;

const visible = () => data.points.filter((point) => shown[point.method]);
const findFront = (points) => {
  const front = [];
  let top = -Infinity;
  const order = points.filter((p) => p.status === "completed" || p.status === "interpolated").sort((a, b) => b.x - a.x || b.y - a.y);
  for (const point of order) {
    const last = front[front.length - 1];
    if (point.y > top || (last && point.x === last.x && point.y === last.y)) {
      front.push(point);
      top = point.y;
    }
  }
  return front;
};

const domain = (front) => {
  if (!zoomed || !front.length) {
    const room = 1.03 - data.lowest;
    return { x: [-0.03, 1.04], y: [data.lowest - 0.03 * room, 1 + 0.15 * room] };
  }
  const spread = (values) => {
    const low = Math.min(...values);
    const high = Math.max(...values);
    const pad = Math.max(0.015, (high - low) * 0.12);
    return [low - pad, high + pad];
  };
  return { x: spread(front.map((p) => p.x)), y: spread([data.floor, ...front.map((p) => p.y)]) };
};

const drawPlot = () => {
  clear(svg);
  const width = Math.max(280, plot.clientWidth);
  const narrow = width < 560;
  const height = Math.round(Math.min(560, narrow ? width * 1.12 : width * 0.58));
  const box = { left: 36, right: width - (narrow ? 8 : 14), top: 34, bottom: height - 46 };
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  const points = visible();
  const front = findFront(points);
  const onFront = new Set(front);
  const { x: xs, y: ys } = domain(front);
  const X = (v) => box.left + ((v - xs[0]) / (xs[1] - xs[0])) * (box.right - box.left);
  const Y = (v) => box.bottom - ((v - ys[0]) / (ys[1] - ys[0])) * (box.bottom - box.top);
  const inside = (p) => p.x >= xs[0] && p.x <= xs[1] && p.y >= ys[0] && p.y <= ys[1];

  element("title", { id: "plot-title" }, svg, "Forget score against utility, one mark a trial");
  element("desc", { id: "plot-text" }, svg, `${byId("tally").textContent} ${front.length} on the frontier. Every value is in the table of all trials below.`);

  // Ground: under the floor, grid, axes.
  const clampY = (v) => Math.min(box.bottom, Math.max(box.top, v));
  const floorY = Y(data.floor);
  element("rect", { class: "below", x: box.left, y: clampY(floorY), width: box.right - box.left, height: box.bottom - clampY(floorY) }, svg);
  for (const [value, text] of ticks(xs[0], Math.min(1, xs[1]), narrow ? 4 : 6)) {
    element("line", { class: "grid", x1: X(value), x2: X(value), y1: box.top, y2: box.bottom }, svg);
    element("text", { class: "tick", x: X(value), y: box.bottom + 18, "text-anchor": "middle" }, svg, text);
  }
  for (const [value, text] of ticks(ys[0], Math.min(1, ys[1]), (box.bottom - box.top) / 60)) {
    element("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(value), y2: Y(value) }, svg);
    element("text", { class: "tick", x: box.left - 7, y: Y(value) + 4, "text-anchor": "end" }, svg, text);
  }
  element("text", { class: "axis", x: 0, y: 14 }, svg, narrow ? "\u2191 Utility kept" : "\u2191 Utility kept (1 = as the starting model)");
  element("text", { class: "axis", x: box.right, y: height - 6, "text-anchor": "end" }, svg, narrow ? "Forget score \u2192" : "Forget score (1 = as a model that never knew) \u2192");
  if (floorY >= box.top && floorY <= box.bottom) {
    element("line", { class: "floor", x1: box.left, x2: box.right, y1: floorY, y2: floorY }, svg);
    element("text", { class: "label soft", x: box.left + 6, y: floorY + 16 }, svg, `utility floor ${data.floor}`);
  }

  // The frontier is a staircase: no model is promised between two points.
  if (front.length) {
    const steps = [...front].reverse().map((p) => [X(p.x), Y(p.y)]);
    let path = `M${box.left} ${steps[0][1]}`;
    steps.forEach(([x, y]) => { path += `V${y}H${x}`; });
    element("path", { class: "staircase", d: `${path}V${box.bottom}` }, svg);
  }

  // Trials with no details, as one path a method; then stopped early, dominated, and the frontier on top.
  data.methods.forEach((method, m) => {
    if (!shown[m]) return;
    const dots = data.others.filter(([of, x, y]) => of === m && inside({ x, y }));
    if (dots.length) element("path", { class: `other m${m}`, d: dots.map(([, x, y]) => `M${X(x).toFixed(1)} ${Y(y).toFixed(1)}h0`).join("") }, svg);
  });
  const rank = (p) => (p.chosen ? 3 : onFront.has(p) ? 2 : p.status === "pruned" ? 0 : 1);
  placed = points.filter(inside).sort((a, b) => rank(a) - rank(b)).map((point) => {
    const onLine = point.status === "interpolated";
    const look = onLine ? "between" : rank(point) >= 2 ? "front" : rank(point) ? "" : "early";
    const radius = onLine ? 4.2 : rank(point) >= 2 ? 6.2 : rank(point) ? 4.8 : 3.6;
    const node = element("path", {
      class: `mark m${point.method} ${look}`,
      d: shapes[data.methods[point.method].shape](radius),
      transform: `translate(${X(point.x).toFixed(1)} ${Y(point.y).toFixed(1)})`,
    }, svg);
    if (onLine) element("circle", { class: `pip m${point.method}`, cx: X(point.x).toFixed(1), cy: Y(point.y).toFixed(1), r: 1.5 }, svg);
    node.dataset.row = point.row;
    node.dataset.method = point.method;
    return { point, node, x: X(point.x), y: Y(point.y), front: onFront.has(point) };
  });
  const hiddenByZoom = points.length - placed.length;
  byId("outside").textContent = hiddenByZoom ? `${hiddenByZoom} outside this view.` : "";

  const labels = [];
  for (const [name, place] of [["Starting model", data.start], ["Retrained model", data.retrained]]) {
    if (!place || !inside(place)) continue;
    element("circle", { class: "model", cx: X(place.x), cy: Y(place.y), r: 6 }, svg);
    if (name === "Starting model") element("circle", { class: "core", cx: X(place.x), cy: Y(place.y), r: 2.5 }, svg);
    labels.push({ x: X(place.x), y: Y(place.y), text: name, kind: "" });
  }
  const chosen = placed.find((p) => p.point.chosen);
  if (chosen) {
    element("circle", { class: "ring", cx: chosen.x, cy: chosen.y, r: 12 }, svg);
    const name = data.methods[chosen.point.method].label;
    const trial = narrow ? "" : `, ${chosen.point.name}`;
    labels.unshift({ x: chosen.x, y: chosen.y, text: `Chosen: ${name}${trial}`, kind: "strong" });
  }
  placeLabels(labels, { left: 0, right: width, top: 20, bottom: box.bottom });
  placed.sort((a, b) => a.x - b.x || a.y - b.y);
  point(null);
};

// Each label beside its mark, where it covers the fewest marks and no other label.
const placeLabels = (labels, limits) => {
  const taken = [];
  const near = (area, p, room) => p.x > area.left - room && p.x < area.right + room && p.y > area.top - room && p.y < area.bottom + room;
  for (const label of labels) {
    const node = element("text", { class: `label ${label.kind}`, "text-anchor": "middle" }, svg, label.text);
    const { width, height } = node.getBBox();
    let best = null;
    for (const step of [1, 1.6, 2.4, 3.5, 5]) {
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, -1], [0, 1], [0.8, 0.8], [-0.8, 0.8], [0.8, -0.8], [-0.8, -0.8]]) {
        const x = label.x + (dx ? dx * (16 * step + width / 2) : 0);
        const y = label.y + dy * (16 * step + height / 2);
        const area = { left: x - width / 2, right: x + width / 2, top: y - height / 2, bottom: y + height / 2 };
        const covered = placed.filter((p) => near(area, p, 6)).length + 50 * labels.filter((other) => other !== label && near(area, other, 13)).length;
        const outside = area.left < limits.left || area.right > limits.right || area.top < limits.top || area.bottom > limits.bottom;
        const clash = taken.some((t) => area.left < t.right && t.left < area.right && area.top < t.bottom && t.top < area.bottom);
        const cost = covered + 1000 * outside + 1000 * clash + step;
        if (!best || cost < best.cost) best = { cost, x, y, area, step };
      }
    }
    taken.push(best.area);
    node.setAttribute("x", best.x);
    node.setAttribute("y", best.y + 4.5);
    if (best.step > 1.6) {
      const far = Math.hypot(best.x - label.x, best.y - label.y);
      const from = 14 / far;
      const end = { x: Math.min(best.area.right, Math.max(best.area.left, label.x)), y: Math.min(best.area.bottom, Math.max(best.area.top, label.y)) };
      const line = element("line", { class: "leader", x1: label.x + (best.x - label.x) * from, y1: label.y + (best.y - label.y) * from, x2: end.x, y2: end.y });
      svg.insertBefore(line, node);
    }
  }
};

// ---- details of one trial: the texts of its table row ----
const table = byId("trials");
const heads = [...table.tHead.rows[0].cells];
const rows = new Map([...table.tBodies[0].rows].map((row) => [Number(row.dataset.row), row]));
const pointOf = new Map(data.points.map((one) => [one.row, one]));
const describe = (row, isFront) => {
  const texts = [...rows.get(row).cells].map((cell) => cell.textContent);
  const one = pointOf.get(row);
  const fate = { pruned: "stopped early", interpolated: "on a trial's line" }[one?.status];
  const roles = [one?.chosen && "chosen", isFront && "on the frontier", fate].filter(Boolean);
  const title = document.createElement("strong");
  const name = one ? `${data.methods[one.method].label}, ${one.name}` : `trial ${texts[0]}`;
  title.textContent = [name, ...roles].join(" \u00b7 ");
  const list = document.createElement("dl");
  let group = "score";
  heads.forEach((head, i) => {
    const kind = head.dataset.group;
    if (!["score", "setting", "metric"].includes(kind) || texts[i] === "\u2013") return;
    const term = document.createElement("dt");
    const value = document.createElement("dd");
    term.textContent = head.textContent;
    value.textContent = texts[i];
    if (kind !== group) [term, value].forEach((node) => node.classList.add("gap"));
    group = kind;
    list.append(term, value);
  });
  tooltip.replaceChildren(title, list);
};
let activeRow = null;
const highlight = (row) => {
  if (row === activeRow) return;
  for (const [one, on] of [[activeRow, false], [row, true]]) {
    if (one === null) continue;
    rows.get(one).classList.toggle("active", on);
    placed.find((p) => p.point.row === one)?.node.classList.toggle("active", on);
  }
  activeRow = row;
  for (const show of links) show(row);
};
// Details beside (x, y) of a figure's holder.
const showDetails = (holder, x, y) => {
  if (tooltip.parentNode !== holder) holder.append(tooltip);
  tooltip.hidden = false;
  const { offsetWidth: w, offsetHeight: h } = tooltip;
  const room = holder.clientWidth;
  const right = x + 16 + w <= room;
  const left = right ? x + 16 : x - 16 - w >= 0 ? x - 16 - w : Math.max(0, (room - w) / 2);
  const beside = right || x - 16 - w >= 0;
  tooltip.style.left = `${left}px`;
  tooltip.style.top = `${beside ? Math.max(0, y - h / 2) : y + 18}px`;
};
const point = (target) => {
  active = target;
  plot.classList.toggle("pointing", Boolean(target));
  highlight(target ? target.point.row : null);
  tooltip.hidden = !target;
  if (!target) { pinned = false; return; }
  describe(target.point.row, target.front);
  showDetails(plot, target.x, target.y);
};
const pointLine = (holder, found) => {
  if (active) point(null);
  highlight(found ? found.row : null);
  tooltip.hidden = !found;
  if (!found) return;
  describe(found.row, rows.get(found.row).classList.contains("front"));
  showDetails(holder, found.x, found.y);
};
const nearest = (event) => {
  const frame = svg.getBoundingClientRect();
  const x = event.clientX - frame.left;
  const y = event.clientY - frame.top;
  let best = null;
  let distance = event.pointerType === "touch" ? 32 : 18;
  for (const one of placed) {
    const away = Math.hypot(one.x - x, one.y - y) - (one.front ? 2 : 0);
    if (away < distance) { best = one; distance = away; }
  }
  return best;
};
plot.addEventListener("pointermove", (event) => {
  if (pinned || event.pointerType === "touch") return;
  const one = nearest(event);
  if (one !== active) point(one);
});
plot.addEventListener("pointerleave", (event) => { if (!pinned && event.pointerType !== "touch") point(null); });
plot.addEventListener("click", (event) => {
  const one = nearest(event);
  point(one);
  pinned = Boolean(one);
});
plot.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape") point(null);
  else if (event.key === "Home") point(placed[0] ?? null);
  else if (event.key === "End") point(placed[placed.length - 1] ?? null);
  else if (step && placed.length) {
    const at = active ? placed.indexOf(active) + step : Math.max(0, placed.findIndex((p) => p.point.chosen));
    point(placed[(at + placed.length) % placed.length]);
  } else return;
  pinned = Boolean(active);
  event.preventDefault();
});
plot.addEventListener("blur", () => point(null));

// ---- the tables: a click on a header sorts, what has no value comes last ----
for (const sheet of document.querySelectorAll("table.sheet")) {
  const ranks = data.tables[sheet.id];
  const columns = [...sheet.tHead.rows[0].cells];
  const lines = [...sheet.tBodies[0].rows];
  columns.forEach((head, column) => {
    const isNumeric = Boolean(head.dataset.numeric);
    const value = (line) => {
      const text = line.cells[column].textContent;
      return isNumeric ? ranks[Number(line.dataset.row)][column] : text === "\u2013" ? null : text;
    };
    head.firstElementChild.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = isNumeric && column > 0 ? "descending" : "ascending";
      const direction = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
      columns.forEach((other) => other.setAttribute("aria-sort", other === head ? direction : "none"));
      const sign = direction === "ascending" ? 1 : -1;
      const keyed = lines.map((line) => [value(line), line]);
      keyed.sort(([left], [right]) => {
        if (left === null || right === null) return (left === null) - (right === null);
        return sign * (isNumeric ? left - right : left.localeCompare(right, "en", { numeric: true }));
      });
      sheet.tBodies[0].append(...keyed.map(([, line]) => line));
    });
  });
}

// ---- controls ----
const legend = [...document.querySelectorAll(".method")];
const redraw = () => {
  pointLine(plot, null);
  if (tooltip.parentNode !== plot) plot.append(tooltip);
  drawPlot();
  drawCurves();
  drawParallel(pointLine);
  drawBudgets();
  drawLevels();
  drawIntervals();
  drawWeights();
};
legend.forEach((button, m) => {
  button.querySelector("path").setAttribute("d", shapes[data.methods[m].shape](5));
  button.addEventListener("click", () => {
    shown[m] = !shown[m];
    button.setAttribute("aria-pressed", String(shown[m]));
    for (const line of document.querySelectorAll(`.sheet tr[data-method="${m}"]`)) line.hidden = !shown[m];
    redraw();
  });
});
byId("zoom").addEventListener("click", (event) => {
  zoomed = !zoomed;
  event.currentTarget.setAttribute("aria-pressed", String(zoomed));
  drawPlot();
});
const theme = byId("theme");
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
const nameTheme = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
dark.addEventListener("change", nameTheme);
nameTheme();
theme.hidden = false;
byId("controls").hidden = false;

let seen = 0;
new ResizeObserver(() => {
  if (plot.clientWidth === seen) return;
  seen = plot.clientWidth;
  redraw();
}).observe(plot);
seen = plot.clientWidth;
redraw();
