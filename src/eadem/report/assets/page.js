"use strict";
(() => {
  const tip = document.getElementById("tip");
  const lens = tip.querySelector("canvas");
  const words = tip.querySelector("span");
  const SPAN = 21;

  const place = (x, y) => {
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 18 + box.width > innerWidth ? x - 18 - box.width : x + 18;
    const top = y + 18 + box.height > innerHeight ? y - 18 - box.height : y + 18;
    tip.style.left = Math.max(6, left) + "px";
    tip.style.top = Math.max(6, top) + "px";
  };
  const hide = () => { tip.hidden = true; };
  const say = (text, x, y) => {
    tip.classList.remove("lens");
    words.textContent = text;
    place(x, y);
  };

  const pixels = async (source) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  };

  /* The free value behind every coordinate of a site, read back from its index image. */
  const decode = async (plane) => {
    const { data, width, height } = await pixels(plane.dataset.index);
    const at = new Int32Array(width * height);
    for (let i = 0; i < at.length; i++) {
      at[i] = (data[4 * i] << 16 | data[4 * i + 1] << 8 | data[4 * i + 2]) - 1;
    }
    const places = new Map();
    at.forEach((k, i) => {
      if (k < 0) return;
      const list = places.get(k);
      if (list) list.push(i); else places.set(k, [i]);
    });
    const overlay = document.createElement("canvas");
    const box = plane.getBoundingClientRect();
    overlay.width = Math.round(box.width * devicePixelRatio);
    overlay.height = Math.round(box.height * devicePixelRatio);
    plane.append(overlay);
    const site = JSON.parse(plane.dataset.site);
    return { at, places, width, height, overlay, site };
  };
  const known = new WeakMap();
  const explored = (plane) => {
    if (!known.has(plane)) known.set(plane, decode(plane));
    return known.get(plane);
  };

  /* Row and column of the drawn plane to an index of the site (kernels lie side by side). */
  const coordinate = (shape, r, c) => {
    const n = shape.length;
    if (n === 0) return [];
    if (n === 1) return [c];
    if (n === 2) return [r, c];
    const last = shape[n - 1];
    const inner = [];
    for (let d = n - 2; d >= 2; d--) { inner.unshift(r % shape[d]); r = Math.floor(r / shape[d]); }
    return [r, Math.floor(c / last), ...inner, c % last];
  };
  const unravel = (shape, k) => {
    const out = [];
    for (let d = shape.length - 1; d >= 0; d--) { out.unshift(k % shape[d]); k = Math.floor(k / shape[d]); }
    return out;
  };

  const hash = (x) => {
    x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
    x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
    return ((x ^ (x >>> 16)) >>> 0) / 4294967296;
  };
  const colour = (k, { hue, hashed }) => {
    const t = Math.floor((hashed ? hash(k) : (k * 0.6180339887498949) % 1) * 48) / 47;
    return `oklch(${0.42 + 0.4 * t} ${0.13 + 0.03 * Math.sin(Math.PI * t)} ${hue + 200 * t})`;
  };

  const look = (found, r, c) => {
    const { at, width, height } = found;
    const pen = lens.getContext("2d");
    const size = lens.width / SPAN;
    const half = (SPAN - 1) / 2;
    pen.clearRect(0, 0, lens.width, lens.height);
    const chosen = at[r * width + c];
    for (let i = 0; i < SPAN; i++) {
      for (let j = 0; j < SPAN; j++) {
        const y = r + i - half, x = c + j - half;
        if (y < 0 || x < 0 || y >= height || x >= width) continue;
        const k = at[y * width + x];
        if (k < 0) continue;
        pen.globalAlpha = k === chosen ? 1 : 0.62;
        pen.fillStyle = colour(k, found.site);
        pen.fillRect(j * size, i * size, size - 1, size - 1);
      }
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = getComputedStyle(document.body).color;
    pen.lineWidth = 2;
    pen.strokeRect(half * size - 1, half * size - 1, size + 1, size + 1);
  };

  const mark = (found, k) => {
    const { places, width, height, overlay } = found;
    const pen = overlay.getContext("2d");
    pen.clearRect(0, 0, overlay.width, overlay.height);
    const spots = k < 0 ? [] : places.get(k);
    const sx = overlay.width / width, sy = overlay.height / height;
    const side = Math.max(3 * devicePixelRatio, sx, sy);
    if (spots.length) {
      pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--page");
      pen.globalAlpha = 0.72;
      pen.fillRect(0, 0, overlay.width, overlay.height);
      pen.globalAlpha = 1;
    }
    pen.fillStyle = getComputedStyle(document.body).color;
    for (const i of spots) {
      const y = Math.floor(i / width), x = i % width;
      pen.fillRect((x + 0.5) * sx - side / 2, (y + 0.5) * sy - side / 2, side, side);
    }
  };

  const explore = (plane, found, r, c, x, y) => {
    found.cursor = [r, c];
    const k = found.at[r * found.width + c];
    const { name, owner, shape, ownerShape } = found.site;
    const where = `${name}[${coordinate(shape, r, c).join(", ")}]`;
    const value = k < 0 ? "0, fixed by the map" : `${owner}[${unravel(ownerShape, k).join(", ")}]`;
    const times = k < 0 ? "" : `\nused at ${found.places.get(k).length.toLocaleString("en")} coordinates of this site`;
    look(found, r, c);
    mark(found, k);
    words.textContent = `${where}\n= ${value}${times}\n\n${plane.dataset.tip}`;
    tip.classList.add("lens");
    place(x, y);
  };
  const limit = (v, n) => Math.min(n - 1, Math.max(0, Math.floor(v)));

  const point = async (plane, x, y) => {
    const found = await explored(plane);
    if (!plane.matches(":hover")) return;
    const box = plane.getBoundingClientRect();
    const r = limit((y - box.top) / box.height * found.height, found.height);
    const c = limit((x - box.left) / box.width * found.width, found.width);
    explore(plane, found, r, c, x, y);
  };

  /* By keyboard: from the middle's nearest live coordinate, with the arrow keys. */
  const step = async (plane, down, across) => {
    const found = await explored(plane);
    if (document.activeElement !== plane) return;
    const { at, width, height } = found;
    if (!found.cursor) {
      let i = Math.floor(at.length / 2);
      while (i < at.length - 1 && at[i] < 0) i++;
      found.cursor = [Math.floor(i / width), i % width];
    }
    const r = limit(found.cursor[0] + down, height), c = limit(found.cursor[1] + across, width);
    const box = plane.getBoundingClientRect();
    explore(plane, found, r, c, box.left + (c + 0.5) / width * box.width, box.top + (r + 0.5) / height * box.height);
  };
  const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  for (const target of document.querySelectorAll("[data-tip]")) {
    const deep = "index" in target.dataset;
    const leave = async () => {
      hide();
      if (known.has(target)) mark(await explored(target), -1);
    };
    target.addEventListener("pointermove", (e) => deep ? point(target, e.clientX, e.clientY) : say(target.dataset.tip, e.clientX, e.clientY));
    target.addEventListener("pointerleave", leave);
    target.addEventListener("blur", leave);
    target.addEventListener("focus", () => {
      if (target.matches(":hover")) return;
      if (deep) { step(target, 0, 0); return; }
      const box = target.getBoundingClientRect();
      say(target.dataset.tip, box.left + box.width / 2, box.top + box.height / 2);
    });
    if (deep) target.addEventListener("keydown", (e) => {
      if (!(e.key in ARROWS)) return;
      e.preventDefault();
      const [down, across] = ARROWS[e.key];
      const stride = e.shiftKey ? 10 : 1;
      step(target, down * stride, across * stride);
    });
  }
  /* Diffraction patterns: a stretch of 2θ, with the counts that are in it. */
  const NICE = [1, 2, 5, 10];
  const ticks = (low, high, about) => {
    const power = 10 ** Math.floor(Math.log10((high - low) / about));
    const size = power * NICE.find((m) => m * power >= (high - low) / about * 0.999);
    const found = [];
    for (let i = Math.ceil(low / size - 1e-9); i * size <= high + 1e-9 * size; i++) found.push(+(i * size).toPrecision(12));
    return found;
  };
  const drawn = (path) => [...path.getAttribute("d").matchAll(/[ML](\S+?) (-?[\d.e+-]+)/g)].map((m) => [+m[1], -m[2]]);

  for (const figure of document.querySelectorAll("figure.pattern")) {
    const numbers = (text) => text.split(" ").map(Number);
    const [first, last] = numbers(figure.dataset.x);
    const [left, top, width, height, foot] = numbers(figure.dataset.box);
    const svg = figure.querySelector("svg"), axes = figure.querySelector(".axes");
    const plot = (kind) => figure.querySelector(`svg.${kind}`);
    const seen = drawn(figure.querySelector("path.seen")), apart = drawn(figure.querySelector("path.apart"));
    const marks = figure.dataset.marks.split("|").filter(Boolean).map((m) => [parseFloat(m), m.slice(m.indexOf(" ") + 1)]);
    let [low, high] = [first, last];

    const line = (kind, x1, x2, y1, y2) => `<line class="${kind}" x1="${x1}" x2="${x2}" y1="${y1}" y2="${y2}"/>`;
    const text = (x, y, anchor, words) => `<text class="tick" x="${x}" y="${y}" text-anchor="${anchor}">${words}</text>`;
    const draw = () => {
      const inside = (points) => points.filter(([x]) => x >= low && x <= high).map(([, y]) => y);
      const counts = inside(seen), off = inside(apart).map(Math.abs);
      const most = 1.04 * Math.max(1, ...counts), least = high - low < last - first ? 0.9 * Math.min(...counts) : Math.min(0, ...counts);
      const far = 1.04 * Math.max(1e-9, ...off);
      plot("main").setAttribute("viewBox", `${low} ${-most} ${high - low} ${most - least}`);
      plot("marks").setAttribute("viewBox", `${low} 0 ${high - low} 1`);
      plot("apart").setAttribute("viewBox", `${low} ${-far} ${high - low} ${2 * far}`);
      let html = line("axis", left, left + width, foot, foot);
      for (const t of ticks(least, most, 5)) {
        const y = top + height * (most - t) / (most - least);
        html += line("grid", left, left + width, y, y) + text(left - 8, y + 4, "end", t);
      }
      for (const t of ticks(low, high, 8)) {
        const x = left + width * (t - low) / (high - low);
        html += line("axis", x, x, foot, foot + 5) + text(x, foot + 19, "middle", t);
      }
      axes.innerHTML = html;
    };
    const show = (from, to) => {
      const span = Math.min(last - first, Math.max(0.5, to - from));
      low = Math.min(last - span, Math.max(first, (from + to - span) / 2));
      high = low + span;
      draw();
    };
    const zoom = (factor, at) => show(at - (at - low) * factor, at + (high - at) * factor);
    const angle = (e) => {
      const box = svg.getBoundingClientRect();
      return low + (high - low) * ((e.clientX - box.left) / box.width * svg.viewBox.baseVal.width - left) / width;
    };
    let held = null;
    svg.addEventListener("wheel", (e) => { e.preventDefault(); zoom(Math.exp(0.002 * e.deltaY), angle(e)); }, { passive: false });
    svg.addEventListener("dblclick", () => show(first, last));
    svg.addEventListener("pointerdown", (e) => { held = angle(e); svg.setPointerCapture(e.pointerId); hide(); });
    svg.addEventListener("pointerup", () => { held = null; });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", (e) => {
      const at = angle(e);
      if (held !== null) { show(low + held - at, high + held - at); return; }
      const near = marks.filter(([x]) => Math.abs(x - at) < 0.006 * (high - low)).sort((a, b) => Math.abs(a[0] - at) - Math.abs(b[0] - at));
      if (near.length) say(near.slice(0, 5).map(([x, name]) => `${name}   ${x.toFixed(2)}°`).join("\n"), e.clientX, e.clientY);
      else hide();
    });
    figure.addEventListener("keydown", (e) => {
      const middle = (low + high) / 2, step = 0.15 * (high - low);
      const act = {
        "+": () => zoom(0.7, middle), "=": () => zoom(0.7, middle), "-": () => zoom(1 / 0.7, middle), "0": () => show(first, last),
        ArrowLeft: () => show(low - step, high - step), ArrowRight: () => show(low + step, high + step),
      }[e.key];
      if (act && !e.ctrlKey && !e.metaKey) { e.preventDefault(); act(); }
    });
  }
  addEventListener("keydown", (e) => { if (e.key === "Escape") hide(); });
  addEventListener("scroll", hide, { passive: true });
})();
