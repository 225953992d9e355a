"""What is in Pocket Zoo, by name, for those who do not draw it."""

CLASSES = ("elephant", "giraffe", "zebra", "lion", "penguin", "crocodile", "flamingo", "tortoise")
STUFF = ("sky", "grass", "water", "sand", "path", "tree")
