from hcpdiff.cli import main

main()
