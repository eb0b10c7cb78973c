"""The long operations that the tab, the API and the command line all call: train, sample, evaluate, collect."""
