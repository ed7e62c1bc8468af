// What a page does when it is looked at: theme, series toggles, tables, clips and charts. Reads the markup of blocks.py,
// clips.py and charts.py.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const hidden = new Set();
  const charts = [];

  // --- theme ---------------------------------------------------------------------------------------------------------
  const theme = document.querySelector(".theme");
  const isDark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  theme?.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  });

  // --- series --------------------------------------------------------------------------------------------------------
  const legend = document.querySelector(".legend");
  if (legend) {
    const measure = () => document.documentElement.style.setProperty("--legend-height", `${legend.offsetHeight}px`);
    new ResizeObserver(measure).observe(legend);
    for (const button of all("button[data-toggle]", legend)) {
      button.addEventListener("click", () => {
        const series = button.dataset.toggle;
        if (!hidden.delete(series)) hidden.add(series);
        button.setAttribute("aria-pressed", String(!hidden.has(series)));
        for (const one of all(`[data-series="${series}"]`)) one.classList.toggle("is-off", hidden.has(series));
        for (const chart of charts) chart.draw();
      });
    }
  }

  // --- tables --------------------------------------------------------------------------------------------------------
  for (const button of all(".matrix .group button")) {
    button.addEventListener("click", () => {
      const body = button.closest("tbody");
      const folded = body.dataset.folded !== "true";
      body.dataset.folded = String(folded);
      button.setAttribute("aria-expanded", String(!folded));
    });
  }
  const key = (row, column) => {
    const text = row.cells[column].dataset.key ?? row.cells[column].textContent.trim().replace("−", "-");
    const number = parseFloat(text);
    return Number.isNaN(number) ? text : number;
  };
  for (const head of all("th[data-sort]")) {
    head.addEventListener("click", () => {
      const body = head.closest("table").tBodies[0], column = head.cellIndex;
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1);
      const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(key(a, column), key(b, column)));
      body.append(...rows);
    });
  }
  for (const button of all(".command button")) {
    button.addEventListener("click", async () => {
      const text = button.parentNode.querySelector("pre").textContent;
      const range = document.createRange();
      range.selectNodeContents(button.parentNode.querySelector("pre"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      const copied = await (navigator.clipboard?.writeText(text).then(() => true, () => false) ?? false);
      button.textContent = copied || document.execCommand("copy") ? "copied" : "selected";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }

  // --- clips ---------------------------------------------------------------------------------------------------------
  for (const player of all(".player")) {
    const films = all(".film", player);
    const button = player.querySelector(".play");
    const scrubber = player.querySelector(".frame"), slider = player.querySelector(".step");
    const count = Math.max(1, ...films.map((film) => Number(film.dataset.frames)));
    let frame = Number(scrubber?.value ?? 0), timer = 0, visible = true;
    const show = (next) => {
      frame = next % count;
      for (const film of films) {
        const columns = Number(film.style.getPropertyValue("--columns"));
        const own = Math.min(frame, Number(film.dataset.frames) - 1);  // a shorter clip rests on its last frame
        film.style.setProperty("--x", own % columns);
        film.style.setProperty("--y", Math.floor(own / columns));
      }
      if (scrubber) scrubber.value = frame;
    };
    const playing = () => button?.getAttribute("aria-pressed") === "true";
    const run = () => {
      clearInterval(timer);
      if (playing() && visible) timer = setInterval(() => show(frame + 1), 1000 / Number(player.dataset.fps));
    };
    const play = (on) => {
      button.setAttribute("aria-pressed", String(on));
      button.textContent = on ? "❚❚ pause" : "▶ play";
      run();
    };
    button?.addEventListener("click", () => play(!playing()));
    scrubber?.addEventListener("input", () => { play(false); show(Number(scrubber.value)); });
    const output = player.querySelector("output");
    const names = slider ? JSON.parse(slider.dataset.names) : [];
    slider?.addEventListener("input", () => {
      output.textContent = names[slider.value];
      for (const image of all("img[data-step]", player)) image.hidden = image.dataset.step !== slider.value;
      for (const text of all("[data-step]:not(img)", player)) text.hidden = text.dataset.step !== slider.value;
    });
    if (button && count > 1) {
      new IntersectionObserver(([entry]) => { visible = entry.isIntersecting; run(); }).observe(player);
      play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    }
    for (const wipe of all(".wipe", player)) {
      const range = wipe.querySelector("input");
      range.addEventListener("input", () => wipe.style.setProperty("--at", `${range.value}%`));
    }
  }

  // --- charts --------------------------------------------------------------------------------------------------------
  const SVG = "http://www.w3.org/2000/svg";
  const element = (parent, name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const isNumber = (value) => value !== null && Number.isFinite(value);

  // A number as a person writes it: 1,200; 0.034; 3.1e-7.
  const plain = (value, digits = 4) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace(/\.?0*e\+?/, "e");
    return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 7 : digits });
  };

  // An axis maps values to pixels; a logarithmic one that begins at 0 or below is linear up to its first positive value.
  const makeAxis = (low, high, log, from, to, smallest) => {
    if (log && low <= 0) {
      const warp = (value) => Math.log1p(Math.max(0, value) / smallest);
      const end = warp(high) || 1;
      const ticks = [0, ...decades(smallest, high)];
      return { at: (value) => from + (to - from) * warp(value) / end, value: (pixel) => smallest * Math.expm1(end * (pixel - from) / (to - from)), ticks };
    }
    const warp = log ? Math.log : (value) => value, unwarp = log ? Math.exp : (value) => value;
    let a = warp(low), b = warp(high);
    if (a === b) { a -= 0.5; b += 0.5; }
    return {
      at: (value) => from + (to - from) * (warp(value) - a) / (b - a),
      value: (pixel) => unwarp(a + (b - a) * (pixel - from) / (to - from)),
      ticks: log && high / low > 2.5 ? decades(low, high) : steps(low, high),
    };
  };
  const decades = (low, high) => {
    const ratio = high / low, wanted = ratio > 3000 ? [1] : ratio > 60 ? [1, 3] : ratio > 8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 6];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const digit of wanted) {
        const tick = digit * 10 ** power;
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(Number(tick.toPrecision(12)));
      }
    }
    const skip = Math.ceil(ticks.length / 7);
    return ticks.filter((_, index) => index % skip === 0);
  };
  const steps = (low, high) => {
    const rough = (high - low || Math.abs(high) || 1) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((digit) => digit * power).find((size) => size >= rough);
    const ticks = [];
    for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Number(tick.toPrecision(12)));
    return ticks;
  };

  const shapes = [
    (x, y) => `M${x - 3.5},${y}a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0z`,
    (x, y) => `M${x - 3.2},${y - 3.2}h6.4v6.4h-6.4z`,
    (x, y) => `M${x},${y - 4}l4,7h-8z`,
    (x, y) => `M${x},${y - 4.4}l4.4,4.4l-4.4,4.4l-4.4,-4.4z`,
    (x, y) => `M${x},${y + 4}l4,-7h-8z`,
  ];

  class Chart {
    constructor(figure, number) {
      this.figure = figure;
      this.number = number;
      this.data = JSON.parse(figure.querySelector("script").textContent);
      this.svg = figure.querySelector("svg");
      this.range = null;
      this.tip = figure.appendChild(Object.assign(document.createElement("div"), { className: "tip", hidden: true }));
      this.reset = figure.appendChild(Object.assign(document.createElement("button"), { className: "unzoom", textContent: "reset zoom", hidden: true }));
      this.reset.addEventListener("click", () => this.zoom(null));
      this.svg.addEventListener("dblclick", () => this.zoom(null));
      this.listen();
      this.draw();
      new ResizeObserver(() => { if (figure.clientWidth !== this.drawn) this.draw(); }).observe(figure);
    }

    zoom(range) {
      this.range = range;
      this.reset.hidden = !range;
      this.draw();
    }

    lines() {
      return this.data.lines.filter((line) => line.series === null || !hidden.has(String(line.series)));
    }

    // The smallest and largest values in sight; the ends of intervals count unless they would squeeze a logarithmic axis.
    extent(lines) {
      const { log_x, log_y } = this.data;
      const xs = [], ys = [];
      const inside = (x) => !this.range || (x >= this.range[0] && x <= this.range[1]);
      const fits = (y) => isNumber(y) && (!log_y || y > 0);
      for (const line of lines.filter((one) => one.style !== "floor")) {
        line.x.forEach((x, index) => {
          if (!inside(x) || !fits(line.y[index])) return;
          xs.push(x);
          ys.push(line.y[index]);
          if (!log_y && line.low) ys.push(...[line.low[index], line.high[index]].filter(isNumber));
        });
      }
      const near = Math.min(...ys) / 3;
      for (const line of lines.filter((one) => one.style === "floor")) ys.push(...line.y.filter((y) => fits(y) && (!log_y || y > near)));
      ys.push(...this.data.targets.filter((y) => fits(y) && ys.length));
      if (!xs.length) { xs.push(log_x ? 1 : 0, 1); ys.push(log_y ? 1 : 0, 1); }
      let low = this.data.y_range?.[0] ?? Math.min(...ys), high = this.data.y_range?.[1] ?? Math.max(...ys);
      if (!this.data.y_range) {
        const margin = log_y ? (high / low) ** 0.06 : 0.06 * (high - low || 1);
        [low, high] = log_y ? [low / margin, high * margin] : [low - margin, high + margin];
      }
      const positive = Math.min(...xs.filter((x) => x > 0), Infinity);
      return { x: this.range ?? [Math.min(...xs), Math.max(...xs)], y: [low, high], smallest: Number.isFinite(positive) ? positive : 1 };
    }

    draw() {
      const width = Math.max(280, this.figure.clientWidth || 480), height = Math.round(Math.min(330, Math.max(220, width * 0.58)));
      const lines = this.lines(), { x, y, smallest } = this.extent(lines);
      this.drawn = this.figure.clientWidth;
      const box = { left: 58, right: width - 12, top: 12, bottom: height - 42 };
      const across = makeAxis(x[0], x[1], this.data.log_x, box.left, box.right, smallest);
      const up = makeAxis(y[0], y[1], this.data.log_y, box.bottom, box.top, 1);
      const places = [...new Set(lines.filter((line) => line.style === "main").flatMap((line) => line.x))].sort((a, b) => a - b);
      this.placed = places.length <= 12;
      if (this.placed) across.ticks = places.filter((place) => place >= x[0] && place <= x[1]);  // a tick each
      Object.assign(this, { across, up, box, width, height });
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.replaceChildren();
      const clip = `plot-${this.number}`;
      const mask = element(element(this.svg, "clipPath", { id: clip }), "rect", { x: box.left - 5, y: box.top - 5, width: box.right - box.left + 10, height: box.bottom - box.top + 10 });
      mask.setAttribute("fill", "none");
      this.drawAxes();
      const plot = element(this.svg, "g", { "clip-path": `url(#${clip})` });
      for (const target of this.data.targets) element(plot, "line", { class: "target", x1: box.left, x2: box.right, y1: up.at(target), y2: up.at(target) });
      for (const line of lines) this.drawLine(plot, line);
      this.drawFloors(plot, lines.filter((line) => line.style === "floor"));
      this.overlay = element(this.svg, "g", {});
    }

    drawAxes() {
      const { across, up, box, width, height } = this;
      for (const tick of up.ticks) {
        const at = up.at(tick);
        element(this.svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at });
        element(this.svg, "text", { x: box.left - 7, y: at + 4, "text-anchor": "end" }, plain(tick, 7));
      }
      const labels = across.ticks.map((tick) => {
        const text = plain(tick, this.placed ? 3 : 7), half = text.length * 3.4, at = across.at(tick);
        element(this.svg, "line", { class: "axis", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4 });
        return { text, half, at: Math.min(at, width - half) };
      });
      const written = [];  // the last one in any case, others where there is room
      for (const label of [labels.at(-1), ...labels.slice(0, -1)].filter(Boolean)) {
        if (written.some((other) => Math.abs(other.at - label.at) < other.half + label.half + 8)) continue;
        written.push(label);
        element(this.svg, "text", { x: label.at, y: box.bottom + 17, "text-anchor": "middle" }, label.text);
      }
      element(this.svg, "line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom });
      element(this.svg, "text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, this.data.x_label);
      element(this.svg, "text", { x: 11, y: (box.top + box.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 11 ${(box.top + box.bottom) / 2})` }, this.data.y_label);
    }

    drawLine(plot, line) {
      const { across, up, box } = this, style = `--c:${line.colour}`, crowd = this.lines().filter((one) => one.low).length;
      const fits = (value) => isNumber(value) && (!this.data.log_y || value > 0);
      const place = (value) => (fits(value) ? up.at(value) : box.bottom + 20);
      if (line.style === "floor") return;
      const ok = line.x.map((_, index) => fits(line.y[index]));
      if (line.low) {
        const ends = line.x.map((x, i) => [across.at(x), line.low[i], line.high[i]]).filter((end, i) => ok[i] && isNumber(end[1]) && isNumber(end[2]));
        const there = ends.map(([x, , high]) => `${x},${place(high)}`), back = ends.reverse().map(([x, low]) => `${x},${place(low)}`);
        if (ends.length > 1) element(plot, "path", { class: "band", style: crowd > 4 ? `${style};opacity:.06` : style, d: `M${[...there, ...back].join("L")}z` });
      }
      const drawn = line.read ?? line.y;
      let path = "", pen = "M";
      line.x.forEach((x, index) => {
        if (fits(drawn[index])) path += `${pen}${across.at(x)},${up.at(drawn[index])}`;
        pen = fits(drawn[index]) ? "L" : "M";
      });
      element(plot, "path", { class: line.style, style, d: path });
      const every = Math.ceil(line.x.length / 12);
      if (line.style === "main") {
        line.x.forEach((x, index) => {
          if (ok[index] && index % every === 0) element(plot, "path", { class: "dot", style: `${style};stroke-width:1`, d: shapes[line.shape % shapes.length](across.at(x), up.at(line.y[index])) });
        });
      }
    }

    // Floors lie across; those at one height take turns with their dashes.
    drawFloors(plot, floors) {
      const { up, box } = this;
      const shown = floors.filter((line) => isNumber(line.y[0]) && (!this.data.log_y || line.y[0] > 0));
      for (const line of shown) {
        const at = up.at(line.y[0]), same = shown.filter((other) => Math.abs(up.at(other.y[0]) - at) < 2);
        const dash = same.length > 1 ? `stroke-dasharray:7 ${7 * (same.length - 1)};stroke-dashoffset:${-7 * same.indexOf(line)}` : "";
        element(plot, "path", { class: "dashed", style: `--c:${line.colour};${dash}`, d: `M${box.left},${at}H${box.right}` });
      }
    }

    // Pixels of the drawing under the pointer; the drawing may be shown larger or smaller than it was made.
    point(event) {
      const rectangle = this.svg.getBoundingClientRect();
      return (event.clientX - rectangle.left) * this.width / rectangle.width;
    }

    listen() {
      let start = null;
      this.svg.addEventListener("pointerdown", (event) => { start = this.point(event); });
      this.svg.addEventListener("pointermove", (event) => {
        const now = this.point(event), { box } = this;
        this.overlay.replaceChildren();
        if (start !== null && Math.abs(now - start) > 6) {
          this.tip.hidden = true;
          const left = Math.max(box.left, Math.min(start, now)), right = Math.min(box.right, Math.max(start, now));
          element(this.overlay, "rect", { class: "select", x: left, width: Math.max(0, right - left), y: box.top, height: box.bottom - box.top });
        } else this.hover(now);
      });
      const leave = () => { start = null; this.tip.hidden = true; this.overlay?.replaceChildren(); };
      this.svg.addEventListener("pointerleave", leave);
      this.svg.addEventListener("pointerup", (event) => {
        const now = this.point(event), { box, across } = this, from = start;
        leave();
        if (from === null || Math.abs(now - from) <= 6) return;
        const ends = [from, now].map((pixel) => across.value(Math.min(box.right, Math.max(box.left, pixel))));
        this.zoom([Math.min(...ends), Math.max(...ends)]);
      });
    }

    hover(pixel) {
      const { across, up, box } = this;
      const mains = this.lines().filter((line) => line.style === "main");
      const inside = (x) => across.at(x) >= box.left - 1 && across.at(x) <= box.right + 1;
      const candidates = mains.flatMap((line) => line.x.filter((x, index) => isNumber(line.y[index]) && inside(x)));
      if (!candidates.length || pixel < box.left - 8) { this.tip.hidden = true; return; }
      const nearest = candidates.reduce((a, b) => (Math.abs(across.at(b) - pixel) < Math.abs(across.at(a) - pixel) ? b : a));
      const at = across.at(nearest);
      element(this.overlay, "line", { class: "rule", x1: at, x2: at, y1: box.top, y2: box.bottom });
      const rows = [];
      for (const line of mains) {
        const index = line.x.indexOf(nearest);
        if (index >= 0 && isNumber(line.y[index])) rows.push([line, line.y[index], line.low?.[index], line.high?.[index]]);
      }
      rows.sort((a, b) => b[1] - a[1]);
      const title = Object.assign(document.createElement("b"), { textContent: `${plain(nearest)} ${this.data.x_label}` });
      this.tip.replaceChildren(title, ...rows.map(([line, value, low, high]) => {
        const row = document.createElement("div"), name = document.createElement("span"), number = document.createElement("span");
        name.className = "series";
        name.style.setProperty("--c", line.colour);
        name.textContent = line.name;
        number.textContent = plain(value) + (isNumber(low) && isNumber(high) ? ` (${plain(low)} to ${plain(high)})` : "");
        row.append(name, number);
        return row;
      }));
      this.tip.hidden = false;
      const scale = this.svg.clientWidth / this.width, left = at * scale + 12;
      const flip = left + this.tip.offsetWidth > this.figure.clientWidth;
      this.tip.style.left = `${flip ? Math.max(0, at * scale - 12 - this.tip.offsetWidth) : left}px`;
      this.tip.style.top = `${this.svg.offsetTop + 14}px`;
    }
  }
  for (const figure of all(".chart")) charts.push(new Chart(figure, charts.length));

  // Everything folded is printed.
  addEventListener("beforeprint", () => {
    for (const fold of all("details:not([open])")) { fold.open = true; fold.dataset.opened = ""; }
  });
  addEventListener("afterprint", () => {
    for (const fold of all("details[data-opened]")) { fold.open = false; delete fold.dataset.opened; }
  });
})();
