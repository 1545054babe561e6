// A button with data-copy puts the text of the element it names on the clipboard.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const box = document.querySelector(button.dataset.copy);
  const done = () => { button.textContent = "Copied"; };
  const select = () => { window.getSelection().selectAllChildren(box); };
  if (!navigator.clipboard) return select();
  navigator.clipboard.writeText(box.textContent).then(done, select);
});
