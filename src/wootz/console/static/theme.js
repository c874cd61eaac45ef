// Loaded before the first paint (a plain script, not a module), so that a chosen theme never flashes.
{
  const theme = localStorage.getItem("wootz-theme");
  if (theme) document.documentElement.dataset.theme = theme;
}
