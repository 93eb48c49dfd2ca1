// Package sim is a driver whose devices are made up: any number, of any vendor,
// model and memory, with faults that happen on time or when a file appears. It
// is a real driver process in every other respect, for machines without a GPU,
// for tests and for demonstrations. It says that it is simulated wherever a
// driver can: in Info, in the inventory, in the devices' IDs and serials, in
// the environment that it grants and in its log.
//
// Its configuration is a Config in JSON.
package sim
