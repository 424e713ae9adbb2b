"""Bad: never comes to an end."""


def again():
    return again()


again()
