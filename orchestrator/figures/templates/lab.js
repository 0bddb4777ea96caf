// Ranks the candidates of one image as the detector does, runs NMS on them, and draws what it keeps and drops.
"use strict";
(() => {
  const section = document.currentScript.closest("section");
  const lab = JSON.parse(section.querySelector("script[type='application/json']").textContent);
  const find = (what) => section.querySelector(what);
  const svg = find("svg");
  const WELL_PLACED = 0.5;
  const f32 = Math.fround; // single precision, as in Python, whose exp and log may differ in the last bit

  // --- data: base64 columns, decoded when first looked at

  const column = (Type, text) => new Type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

  function once(make) {
    const made = new Map();
    return (...key) => {
      const name = key.join();
      if (!made.has(name)) made.set(name, make(...key));
      return made.get(name);
    };
  }

  const objectsOf = once((image) => {
    const { boxes, labels } = lab.images[image];
    return { boxes: column(Float32Array, boxes), labels: column(Uint16Array, labels) };
  });

  const candidatesOf = once((head, image) => {
    const coded = lab.heads[head].candidates[image];
    const found = {
      anchors: column(Uint32Array, coded.anchors),
      labels: column(Uint16Array, coded.labels),
      levels: column(Uint8Array, coded.levels),
      boxes: column(Float32Array, coded.boxes),
      p: column(Float32Array, coded.class_scores),
      c: column(Float32Array, coded.confidences),
      exponents: column(Uint32Array, coded.exponents),
    };
    const objects = objectsOf(image);
    found.iou = new Float32Array(found.p.length); // with the object of its class that a box overlaps most
    found.object = new Int32Array(found.p.length).fill(-1);
    for (let i = 0; i < found.p.length; i++) {
      objects.labels.forEach((label, g) => {
        if (label !== found.labels[i]) return;
        const iou = overlap(found.boxes, i, objects.boxes, g);
        if (iou > found.iou[i]) [found.iou[i], found.object[i]] = [iou, g];
      });
    }
    return found;
  });

  // --- what the detector does

  function overlap(some, i, others, j) {
    const [a, b] = [some.subarray(4 * i, 4 * i + 4), others.subarray(4 * j, 4 * j + 4)];
    const width = Math.max(0, f32(Math.min(a[2], b[2]) - Math.max(a[0], b[0])));
    const height = Math.max(0, f32(Math.min(a[3], b[3]) - Math.max(a[1], b[1])));
    const area = (box) => f32(f32(box[2] - box[0]) * f32(box[3] - box[1]));
    const shared = f32(width * height);
    return f32(shared / f32(f32(area(a) + area(b)) - shared));
  }

  function score(p, c, exponent) {
    if (exponent === 0) return p;
    const ofClass = f32(f32(1 - exponent) * f32(Math.log(p)));
    return f32(Math.exp(f32(ofClass + f32(f32(exponent) * f32(Math.log(c))))));
  }

  // Places of the kept boxes, best first; of each dropped one the kept one that it fell to; and the better ones dropped:
  // for each kept box and object the best placed.
  const suppress = once((head, image, exponent, nms) => {
    const found = candidatesOf(head, image);
    const bit = 1 << lab.exponents.indexOf(exponent);
    const scores = found.p.map((p, i) => score(p, found.c[i], exponent));
    const order = [...scores.keys()].filter((i) => found.exponents[i] & bit);
    order.sort((i, j) => scores[j] - scores[i] || i - j);
    const kept = [], dropped = new Map();
    let numBetter = 0;
    for (const i of order) {
      const by = kept.find(
        (k) => found.labels[k] === found.labels[i] && overlap(found.boxes, k, found.boxes, i) > f32(nms)
      );
      if (by === undefined && kept.length < lab.max_detections) kept.push(i);
      if (by === undefined || found.iou[i] < WELL_PLACED) continue;
      const object = found.object[i];
      const other = overlap(found.boxes, by, objectsOf(image).boxes, object);
      if (found.iou[i] <= other) continue;
      numBetter++;
      const best = dropped.get(`${by}:${object}`);
      if (!best || found.iou[i] > found.iou[best.box]) dropped.set(`${by}:${object}`, { box: i, by, object, other });
    }
    return { found, scores, kept, dropped: [...dropped.values()], numBetter };
  });

  // --- what is chosen

  const withBranch = lab.heads.map((head) => head.has_confidence);
  const state = { head: Math.max(0, withBranch.lastIndexOf(true)), image: 0, active: null };
  const setting = (name) => Number(find(`[data-setting=${name}]`).value);
  const isShown = (layer) => find(`[data-layer=${layer}]`).checked;

  function choices(into, name, texts, fill) {
    texts.forEach((text, place) => {
      const input = make("input", { type: "radio", name: `lab-${name}`, value: place });
      input.checked = place === state[name];
      input.addEventListener("change", () => {
        state[name] = place;
        state.active = null;
        draw();
      });
      const label = make("label", { title: text }, input);
      label.append(fill(text, place));
      into.append(label);
    });
  }

  // --- drawing

  function make(name, attributes = {}, ...children) {
    const isDrawn = ["g", "rect", "text", "image"].includes(name);
    const element = isDrawn ? document.createElementNS(svg.namespaceURI, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  const number = (value) => (Number.isNaN(value) ? "—" : value.toFixed(2));

  function boxesToShow({ found, scores, kept, dropped }) {
    const shown = [];
    kept.forEach((k, rank) => {
      if (scores[k] < setting("least") || rank >= setting("most")) return;
      if (isShown("kept")) shown.push({ kind: "kept", box: k, name: `${rank + 1}` });
      if (!isShown("dropped")) return;
      dropped
        .filter((one) => one.by === k)
        .forEach((one, place) => {
          const letter = String.fromCharCode(97 + (place % 26));
          shown.push({ kind: "dropped", ...one, name: `${rank + 1}${letter}`, byName: `${rank + 1}` });
        });
    });
    for (const one of shown) one.key = `${found.anchors[one.box]}:${found.labels[one.box]}`;
    for (const one of shown) one.byKey = one.by === undefined ? null : `${found.anchors[one.by]}:${found.labels[one.by]}`;
    return shown;
  }

  function draw() {
    const head = lab.heads[state.head];
    const slider = find("[data-setting=exponent]");
    slider.disabled = !head.has_confidence;
    find("[data-why]").hidden = head.has_confidence;
    const exponent = head.has_confidence ? setting("exponent") : 0;
    find("[data-of=exponent]").textContent = exponent.toFixed(2);
    find("[data-of=nms]").textContent = setting("nms").toFixed(1);
    find("[data-of=most]").textContent = setting("most");
    find("[data-of=least]").textContent = setting("least").toFixed(2);
    const seen = suppress(state.head, state.image, exponent, setting("nms"));
    const shown = boxesToShow(seen);
    view = { seen, shown, exponent };
    count(seen);
    find("[data-rows]").replaceChildren(...shown.map((one) => row(one, seen)));
    drawImage(shown, seen);
    highlight(shown.some((one) => one.key === state.active) ? state.active : null);
  }

  let view; // what stands on the page

  function count({ found, kept, dropped, numBetter }) {
    const numWell = kept.filter((k) => found.iou[k] >= WELL_PLACED).length;
    const numLost = new Set(dropped.map((one) => one.object)).size;
    const numObjects = objectsOf(state.image).labels.length;
    const parts = [
      ["kept", kept.length],
      ["well placed", numWell],
      ["better ones dropped", numBetter],
      ["objects that lost one", `${numLost} of ${numObjects}`],
    ];
    find("[data-counts]").replaceChildren(
      ...parts.map(([text, value]) => make("span", { "data-count": text }, make("strong", {}, `${value}`), ` ${text}`))
    );
  }

  function row(one, { found, scores }) {
    const i = one.box;
    const values = [found.p[i], found.c[i], scores[i], found.iou[i]].map((v) => make("td", { class: "number" }, number(v)));
    const attributes = { class: one.kind, tabindex: 0, "data-box": one.key, "data-kind": one.kind };
    const by = one.kind === "dropped" ? `${one.byName}, IoU ${number(one.other)}` : "";
    const tr = make("tr", attributes, make("td", {}, make("span", { class: "tag" }, one.name)));
    tr.append(make("td", {}, lab.categories[found.labels[i]]), ...values, make("td", {}, by));
    listen(tr, one.key);
    return tr;
  }

  function rectangle(boxes, i, attributes) {
    const [x, y, right, bottom] = boxes.subarray(4 * i, 4 * i + 4);
    return make("rect", { x, y, width: Math.max(0, right - x), height: Math.max(0, bottom - y), ...attributes });
  }

  function drawImage(shown, { found }) {
    const { width, height, picture, id } = lab.images[state.image];
    const unit = Math.max(width, height) / 560; // about a pixel of the screen
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-label", `Image ${id} with boxes; the table lists them`);
    svg.replaceChildren(make("image", { href: picture, width, height, preserveAspectRatio: "none" }));
    if (isShown("truth")) {
      const { boxes, labels } = objectsOf(state.image);
      labels.forEach((_, g) => svg.append(make("g", { class: "truth" }, rectangle(boxes, g, { class: "halo" }), rectangle(boxes, g))));
    }
    const area = (one) => {
      const box = found.boxes.subarray(4 * one.box, 4 * one.box + 4);
      return (box[2] - box[0]) * (box[3] - box[1]);
    };
    for (const one of [...shown].sort((a, b) => area(b) - area(a))) {
      const [x, y, right, bottom] = found.boxes.subarray(4 * one.box, 4 * one.box + 4);
      const size = 15 * unit, wide = (8 * one.name.length + 7) * unit;
      // A kept box has its name above it at the left, a dropped one within at the lower right: the two often coincide.
      const top = one.kind === "kept" ? Math.max(0, y - size) : Math.min(bottom, height) - size;
      const left = Math.max(0, Math.min(one.kind === "kept" ? x : right - wide, width - wide));
      const g = make("g", { class: one.kind, "data-box": one.key, "data-kind": one.kind });
      g.append(rectangle(found.boxes, one.box, { class: "halo" }), rectangle(found.boxes, one.box));
      g.append(make("rect", { class: "plate", x: left, y: top, width: wide, height: size }));
      const at = { x: left + 3.5 * unit, y: top + 11.5 * unit, style: `font-size: ${12 * unit}px` };
      g.append(make("text", at, one.name));
      listen(g, one.key);
      svg.append(g);
    }
  }

  // --- pointing at a box in the image or in the table

  function listen(element, key) {
    element.addEventListener("mouseenter", () => highlight(key));
    element.addEventListener("mouseleave", () => highlight(state.active));
    element.addEventListener("focus", () => highlight((state.active = key)));
    element.addEventListener("click", () => highlight((state.active = key)));
  }

  function highlight(key) {
    const one = view.shown.find((other) => other.key === key);
    svg.classList.toggle("pointed", Boolean(one));
    for (const element of section.querySelectorAll("[data-box]")) {
      element.classList.toggle("active", element.dataset.box === key);
      element.classList.toggle("partner", Boolean(one?.byKey) && element.dataset.box === one.byKey);
    }
    find("[data-caption]").replaceChildren(...(one ? explain(one) : [HINT]));
  }

  const HINT = "Point at a box, in the image or in the table, to see why it stands where it does.";

  // In words: how a box comes by its score, and why it fell.
  function explain(one) {
    const { found, scores } = view.seen;
    const formula = (i) => {
      const [p, c, e] = [number(found.p[i]), number(found.c[i]), view.exponent];
      const power = (base, exponent) => [base, make("sup", {}, `${+exponent.toFixed(2)}`)];
      return e === 0 ? [`p = ${p}`] : [...power(p, 1 - e), " · ", ...power(c, e), ` = ${number(scores[i])}`];
    };
    const level = `P${found.levels[one.box]}`;
    const name = lab.categories[found.labels[one.box]];
    const said = [make("strong", {}, one.name), ` ${name} from ${level}, IoU ${number(found.iou[one.box])}, score `];
    said.push(...formula(one.box), ".");
    if (one.kind === "dropped") {
      const shared = number(overlap(found.boxes, one.box, found.boxes, one.by));
      said.push(" Dropped for ", make("strong", {}, one.byName), `, which lies worse (IoU ${number(one.other)}) but scores `);
      said.push(...formula(one.by), `; the two overlap by ${shared}.`);
    }
    return said;
  }

  // --- the controls

  function begin() {
    const texts = lab.heads.map((head) => head.label);
    choices(find("[data-heads]"), "head", texts, (text) => make("span", {}, text));
    const names = lab.images.map((image) => `image ${image.id}`);
    choices(find("[data-images]"), "image", names, (text, place) => make("img", { src: lab.images[place].picture, alt: text }));
    for (const input of section.querySelectorAll("[data-setting], [data-layer]")) input.addEventListener("input", draw);
    find(".bench").hidden = false;
    draw();
  }

  begin();
})();
