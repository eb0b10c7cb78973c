"""The Understand tab's answers: a file for each page; ``desk`` keeps the models and images that they look at."""
