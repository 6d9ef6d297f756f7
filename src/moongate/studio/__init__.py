"""The studio: teach, compose and judge in the browser. A surface next to the command line.

Pages (`app.PAGES`) read and write files below the chosen folders (`places`), start the same commands as the shell as
processes of their own (`commands`, `trainings`), and ask one worker process (`desk`) for what must answer at once.
What a page shows is read from those files, so two browsers see the same, and a server that is started again too.
"""

__all__: list[str] = []
