"""How results are shown: tables, pages, plots, pictures, the lab; knows no MLflow; begin with `table.py`.

What is written as HTML, SVG or Markdown is filled into the jinja2 templates of `templates/`.
"""
