"""One self-contained html page that shows a run: `page.write_report`. No torch in here."""
