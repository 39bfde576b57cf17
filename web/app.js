// Runs once when the page is loaded: what Gradio's components do not do.
() => {
  const kinds = ["image", "video"];
  const other = (file, kind) => kinds.find((each) => each !== kind && file?.type.startsWith(`${each}/`));
  const wait = (find, tries = 50) => new Promise((found) => {
    const look = () => { const node = find(); if (node || !tries--) found(node); else setTimeout(look, 100); };
    look();
  });

  // A video that is dropped on the picture tab, or the reverse, goes to the tab where it belongs.
  const handOver = async (file, kind) => {
    document.querySelector(`#${kind}-tab-button, [role=tab][id^="${kind}-tab"]`)?.click();
    const box = await wait(() => document.getElementById(`${kind}-file`));
    const input = () => box.querySelector("input[type=file]");
    if (!input()) box.querySelector("button[aria-label=Clear], button[aria-label=Remove]")?.click();
    const target = await wait(input);
    const files = new DataTransfer();
    files.items.add(file);
    target.files = files.files;
    target.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const take = (event, files) => {
    const kind = event.target.closest?.("#image-file, #video-file")?.id.replace("-file", "");
    const wanted = kind && other(files?.[0], kind);
    if (!wanted) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    handOver(files[0], wanted);
  };
  document.addEventListener("drop", (event) => take(event, event.dataTransfer?.files), true);
  document.addEventListener("change", (event) => take(event, event.target.files), true);

  // A click into the plot, or on a moment, shows the frame that is nearest in time; dragging is Gradio's own.
  document.addEventListener("click", (event) => {
    const moment = event.target.closest("[data-moment]");
    const area = event.target.closest("#video-plot")?.querySelector(".mark-group .background");
    const result = document.querySelector("#video-result [data-times]");
    const times = JSON.parse(result?.dataset.times ?? "[]");
    if (!(area || moment) || !times.length) return;
    const { left, width } = (area ?? moment).getBoundingClientRect();
    const time = moment ? Number(moment.dataset.moment) : (event.clientX - left) / width * Number(result.dataset.end);
    const place = times.reduce((best, each, i) => Math.abs(each - time) < Math.abs(times[best] - time) ? i : best, 0);
    document.querySelectorAll("#video-frames .thumbnail-item")[place]?.click();
  });

  const tidy = () => {
    // Names of what Gradio leaves unnamed, or names by other words than it shows.
    for (const example of document.querySelectorAll(".gallery-item:not([aria-label])")) {
      const file = example.querySelector("[src]")?.getAttribute("src").split("/").pop();
      const name = decodeURIComponent(file ?? "").replace(/\.\w+$/, "").replace(/_/g, " ");
      if (name) example.setAttribute("aria-label", `Example: ${name}`);
    }
    for (const button of document.querySelectorAll("button.upload-container, .thumbnail-item")) {
      const words = button.textContent.trim().replace(/\s+/g, " ");
      if (words && button.getAttribute("aria-label") !== words) button.setAttribute("aria-label", words);
    }
    for (const mark of document.querySelectorAll("#video-plot [role=graphics-symbol]:not([aria-label])")) {
      mark.setAttribute("aria-label", "Selected time");
    }
    // A new answer that is out of sight, as on a phone, is scrolled to.
    const answer = document.querySelector(".dcl-verdict:not([data-seen])");
    if (!answer) return;
    answer.dataset.seen = "";
    const { top } = answer.getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) answer.scrollIntoView();
  };
  let waiting = 0;
  new MutationObserver(() => { waiting ||= requestAnimationFrame(() => { waiting = 0; tidy(); }); })
    .observe(document.body, { childList: true, subtree: true, attributeFilter: ["role", "src"] });
  tidy();
}
