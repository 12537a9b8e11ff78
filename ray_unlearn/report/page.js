"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const shown = data.methods.map(() => true);

  // Marks: paths around (0, 0) with about the same area.
  const polygon = (corners, turn, outer, inner) => {
    const steps = inner ? corners * 2 : corners;
    const at = (i) => {
      const radius = inner && i % 2 ? inner : outer;
      const angle = turn + (2 * Math.PI * i) / steps;
      return `${(radius * Math.sin(angle)).toFixed(2)} ${(-radius * Math.cos(angle)).toFixed(2)}`;
    };
    return `M${Array.from({ length: steps }, (_, i) => at(i)).join("L")}Z`;
  };
  const bars = (r, t) => `M${-t} ${-r}H${t}V${-t}H${r}V${t}H${t}V${r}H${-t}V${t}H${-r}V${-t}H${-t}Z`;
  const diagonals = (r, t) => {
    const a = r - t;
    return `M${-r} ${-a}L${-a} ${-r}L0 ${-t}L${a} ${-r}L${r} ${-a}L${t} 0L${r} ${a}L${a} ${r}L0 ${t}L${-a} ${r}L${-r} ${a}L${-t} 0Z`;
  };
  const shapes = {
    circle: (r) => `M${-r} 0A${r} ${r} 0 1 1 ${r} 0A${r} ${r} 0 1 1 ${-r} 0Z`,
    diamond: (r) => polygon(4, 0, r * 1.25),
    triangle: (r) => polygon(3, 0, r * 1.35),
    square: (r) => polygon(4, Math.PI / 4, r * 1.25),
    wedge: (r) => polygon(3, Math.PI, r * 1.35),
    plus: (r) => bars(r * 1.15, r * 0.42),
    star: (r) => polygon(5, 0, r * 1.45, r * 0.62),
    cross: (r) => diagonals(r * 1.05, r * 0.5),
  };
  const element = (name, attributes, parent, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const clear = (svg) => svg.replaceChildren();

  // Numbers on axes.
  const ticks = (low, high, wanted) => {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let k = Math.ceil(low / step - 1e-6); k * step <= high + step * 1e-6; k++) {
      found.push([k * step, (k * step).toFixed(digits)]);
    }
    return found;
  };

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
    const order = points.filter((p) => p.completed).sort((a, b) => b.x - a.x || b.y - a.y);
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

    // Stopped early below, then dominated, then the frontier.
    const rank = (p) => (p.chosen ? 3 : onFront.has(p) ? 2 : p.completed ? 1 : 0);
    placed = points.filter(inside).sort((a, b) => rank(a) - rank(b)).map((point) => {
      const look = rank(point) >= 2 ? "front" : point.completed ? "" : "early";
      const radius = rank(point) >= 2 ? 6.2 : point.completed ? 4.8 : 3.6;
      const node = element("path", {
        class: `mark m${point.method} ${look}`,
        d: shapes[data.methods[point.method].shape](radius),
        transform: `translate(${X(point.x).toFixed(1)} ${Y(point.y).toFixed(1)})`,
      }, svg);
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
      const trial = narrow ? "" : `, trial ${data.rows[chosen.point.row][data.columns.indexOf("number")]}`;
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
  const describe = ({ point: one, front }) => {
    const texts = [...rows.get(one.row).cells].map((cell) => cell.textContent);
    const roles = [one.chosen && "chosen", front && "on the frontier", !one.completed && "stopped early"].filter(Boolean);
    const title = document.createElement("strong");
    title.textContent = [`${data.methods[one.method].label}, trial ${texts[0]}`, ...roles].join(" \u00b7 ");
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
  const point = (target) => {
    if (active) {
      active.node.classList.remove("active");
      rows.get(active.point.row).classList.remove("active");
    }
    active = target;
    plot.classList.toggle("pointing", Boolean(target));
    tooltip.hidden = !target;
    if (!target) { pinned = false; return; }
    target.node.classList.add("active");
    rows.get(target.point.row).classList.add("active");
    describe(target);
    const { offsetWidth: w, offsetHeight: h } = tooltip;
    const room = plot.clientWidth;
    const right = target.x + 16 + w <= room;
    const left = right ? target.x + 16 : target.x - 16 - w >= 0 ? target.x - 16 - w : Math.max(0, (room - w) / 2);
    const beside = right || target.x - 16 - w >= 0;
    const top = beside ? Math.max(0, target.y - h / 2) : target.y + 18;
    tooltip.style.left = `${left}px`;
    tooltip.style.top = `${top}px`;
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

  // ---- learning curves: one small plot a method, the same axes ----
  const curves = byId("curves");
  const drawCurves = () => {
    if (!curves) return;
    clear(curves);
    const longest = Math.max(1e-9, ...data.curves.flatMap((curve) => curve.points.map((p) => p[0])));
    const drawn = data.methods.flatMap((method, m) => {
      const mine = data.curves.filter((curve) => curve.method === m);
      if (!mine.length || !shown[m]) return [];
      const holder = document.createElement("div");
      holder.className = `m${m}`;
      const title = document.createElement("h3");
      title.textContent = method.label;
      holder.append(title);
      curves.append(holder);
      return [{ method, mine, holder }];
    });
    // Only now does every holder have its final width.
    for (const { method, mine, holder } of drawn) {
      const width = Math.max(220, holder.clientWidth);
      const height = 190;
      const X = (v) => 30 + (v / longest) * (width - 42);
      const Y = (v) => height - 24 - v * (height - 36);
      const small = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `Objective by epoch of ${mine.length} trials of ${method.label}` }, holder);
      for (const value of [0, 0.5, 1]) {
        element("line", { class: "grid", x1: 30, x2: width - 12, y1: Y(value), y2: Y(value) }, small);
        element("text", { class: "tick", x: 24, y: Y(value) + 4, "text-anchor": "end" }, small, String(value));
      }
      for (const [value, text] of ticks(0, longest, 4)) element("text", { class: "tick", x: X(value), y: height - 6, "text-anchor": "middle" }, small, text);
      const path = (curve) => {
        const all = data.startObjective === null ? curve.points : [[0, data.startObjective], ...curve.points];
        return `M${all.map(([x, y]) => `${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("L")}`;
      };
      element("path", { class: "line", d: mine.filter((c) => !c.best).map(path).join("") || "M0 0" }, small);
      for (const curve of mine.filter((c) => c.best)) {
        element("path", { class: "line best", d: path(curve) }, small);
        for (const [x, y] of curve.points) element("circle", { class: "dot", cx: X(x), cy: Y(y), r: 3.5 }, small);
      }
    }
  };

  // ---- the table ----
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.dataset.numeric && column > 0 ? "descending" : "ascending";
      const direction = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? direction : "none"));
      const sign = direction === "ascending" ? 1 : -1;
      const value = (row) => data.rows[Number(row.dataset.row)][column];
      const order = [...rows.values()].sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === null || right === null) return (left === null) - (right === null);
        return sign * compare(left, right);
      });
      table.tBodies[0].append(...order);
    });
  });

  // ---- controls ----
  const legend = [...document.querySelectorAll(".method")];
  const methodOf = data.columns.indexOf("method");
  const redraw = () => { drawPlot(); drawCurves(); };
  legend.forEach((button, m) => {
    button.querySelector("path").setAttribute("d", shapes[data.methods[m].shape](5));
    button.addEventListener("click", () => {
      shown[m] = !shown[m];
      button.setAttribute("aria-pressed", String(shown[m]));
      rows.forEach((row, i) => { if (data.rows[i][methodOf] === data.methods[m].label) row.hidden = !shown[m]; });
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
})();
